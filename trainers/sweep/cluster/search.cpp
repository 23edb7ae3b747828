#include "trainers/sweep/cluster/search.h"

#include "data/rng.h"
#include "trainers/sweep/cluster/free_times.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <unordered_map>

#include <time.h>

namespace trireme::cluster {
namespace {

using Ticks = std::int32_t;  // whole numbers: bounds and profiles compare exactly
using Set = std::uint64_t;
using Times = std::vector<Ticks>;

struct Item {
  int task, gpus;
  Ticks duration;
};

// The bounds of one width.
struct Width {
  int width, slots;
  std::vector<int> fills;  // slots of item i
  Set members = 0;         // items that fill any
};

double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

class Search {
 public:
  Search(const Problem& p, const Limits& limits, Plan& plan) : p_(p), limits_(limits), plan_(plan) { scale(); }

  // First whether anything is 3 % better than the best known, then 1.5, 0.8, 0: each is a far smaller tree than the
  // next, so that what is proved when time runs out is near.
  void run() {
    const std::size_t n = items_.size();
    const Set all = n == 64 ? ~Set(0) : (Set(1) << n) - 1;
    latest_ = free_.back();
    order_.assign(n, 0);
    proved_ = bound(free_, all);
    anneal();
    for (const Ticks share : {32, 64, 128, 0}) {
      share_ = share;
      aim();
      if (target_ <= proved_) continue;
      memory_.clear(), remembered_ = 0;
      descend(free_, all, 0);
      if (stopped_) break;
      proved_ = std::max(proved_, target_);
    }
    plan_.nodes = nodes_;
    plan_.optimal = proved_ >= best_;
    // Ticks are rounded: by one a task at most.
    plan_.bound =
        plan_.optimal ? plan_.makespan : std::clamp((proved_ - double(n)) / rate_, plan_.bound, plan_.makespan);
  }

 private:
  void scale();
  Ticks chains(Set left, Ticks begin) const;
  Ticks bound(const Times& free, Set left) const;
  void anneal();
  void group(Times& free, Set left) const;
  void aim() { target_ = share_ ? best_ - best_ / share_ : best_; }
  void descend(const Times& free, Set left, std::size_t placed);
  bool dominated(const Times& free, Set left);
  void found(std::size_t placed, const char* by);
  bool late();

  const Problem& p_;
  const Limits limits_;
  Plan& plan_;
  std::vector<Item> items_;
  std::vector<Width> widths_;
  Times free_;
  double rate_ = 1;               // ticks a second
  Ticks best_ = 0, proved_ = 0;   // upper and lower bound of the makespan
  Ticks target_ = 0, share_ = 0;  // looks for schedules that end before `target_`, best_ less a share of it
  Ticks latest_ = 0;              // end of what runs
  std::vector<int> order_;
  std::unordered_map<Set, std::vector<Ticks>> memory_;
  std::size_t remembered_ = 0;
  std::int64_t nodes_ = 0;
  bool stopped_ = false;
  double begin_ = cpu_seconds();
};

void Search::scale() {
  double total = plan_.makespan;
  rate_ = std::exp2(std::floor(29 - std::log2(std::max(total, 1e-9))));
  for (std::size_t i = 0; i < p_.waiting.size(); ++i)
    items_.push_back(
        {int(i), p_.waiting[i].gpus, std::max(Ticks(1), Ticks(std::lround(p_.waiting[i].seconds * rate_)))});
  // Long ones first: the bound of chains wants them so.
  std::stable_sort(items_.begin(), items_.end(), [](const Item& a, const Item& b) {
    return std::pair(a.duration, a.gpus) > std::pair(b.duration, b.gpus);
  });
  free_.assign(std::size_t(p_.gpus), 0);
  std::size_t at = free_.size();
  for (const auto& r : p_.running)
    for (int g = 0; g < r.gpus; ++g) free_[--at] = Ticks(std::lround(std::max(r.end, 0.0) * rate_));
  std::sort(free_.begin(), free_.end());
  for (int w = 1; w <= p_.gpus; ++w) {
    if (w > 1 && std::none_of(items_.begin(), items_.end(), [&](const Item& i) { return i.gpus == w; })) continue;
    Width width{w, p_.gpus / w, {}};
    for (std::size_t i = 0; i < items_.size(); ++i) {
      width.fills.push_back(items_[i].gpus / w);
      if (width.fills[i]) width.members |= Set(1) << i;
    }
    widths_.push_back(width);
  }
  best_ = Ticks(std::lround(plan_.makespan * rate_));
}

// Sets of tasks that ask for more than h G GPUs hold h + 1 of which no two overlap: intervals that h points can pierce
// never need more. The longest tasks that ask for so much give the longest such chain.
Ticks Search::chains(Set left, Ticks begin) const {
  Ticks low = 0;
  std::int64_t asked = 0;
  int taken[64], count = 0;
  for (Set s = left; s; s &= s - 1) {
    taken[count++] = __builtin_ctzll(s);
    asked += items_[std::size_t(taken[count - 1])].gpus;
    const std::int64_t h = (asked - 1) / p_.gpus;
    if (h == 0 || asked - items_[std::size_t(taken[count - 1])].gpus > h * p_.gpus)
      continue;  // not the first for this h
    Ticks sum = begin;
    for (int k = 0; k <= h; ++k) sum += items_[std::size_t(taken[count - 1 - k])].duration;
    low = std::max(low, sum);
  }
  return low;
}

Ticks Search::bound(const Times& free, Set left) const {
  Ticks low = latest_;
  int narrowest = p_.gpus;
  for (Set s = left; s; s &= s - 1) {
    const Item& i = items_[std::size_t(__builtin_ctzll(s))];
    low = std::max(low, start_of<Ticks>(free, i.gpus) + i.duration);
    narrowest = std::min(narrowest, i.gpus);
  }
  if (left) low = std::max(low, chains(left, start_of<Ticks>(free, narrowest)));
  for (const auto& w : widths_) {
    std::int64_t work = 0;
    narrowest = 0;
    for (Set s = left & w.members; s; s &= s - 1) {
      const auto i = std::size_t(__builtin_ctzll(s));
      work += std::int64_t(w.fills[i]) * items_[i].duration;
      narrowest = narrowest ? std::min(narrowest, items_[i].gpus) : items_[i].gpus;
    }
    if (!narrowest) continue;
    // Slot j falls free no earlier than its w GPUs, and nothing starts before the narrowest fits.
    const Ticks begin = start_of<Ticks>(free, narrowest);
    for (int j = 1; j <= w.slots; ++j) work += std::max(begin, free[std::size_t(j * w.width) - 1]);
    low = std::max(low, Ticks((work + w.slots - 1) / w.slots));
    // Energy from the moment on at which `width` GPUs are free: narrower tasks may have done part of theirs.
    const Ticks from = start_of<Ticks>(free, w.width);
    std::int64_t energy = 0;
    for (Ticks f : free) energy += std::max(f, from);
    for (Set s = left; s; s &= s - 1) {
      const Item& i = items_[std::size_t(__builtin_ctzll(s))];
      const Ticks start = start_of<Ticks>(free, i.gpus);
      energy += std::int64_t(i.gpus) * std::max(0, start + i.duration - std::max(start, from));
    }
    low = std::max(low, Ticks((energy + p_.gpus - 1) / p_.gpus));
  }
  return low;
}

// Of GPUs that nothing left is narrow enough to use one by one, a group falls free with its last.
void Search::group(Times& free, Set left) const {
  int step = 0, narrowest = p_.gpus;
  for (Set s = left; s; s &= s - 1) {
    const int g = items_[std::size_t(__builtin_ctzll(s))].gpus;
    step = std::gcd(step, g), narrowest = std::min(narrowest, g);
  }
  if (step > 1)
    for (std::size_t i = 0; i + std::size_t(step) <= free.size(); i += std::size_t(step))
      std::fill_n(free.begin() + std::ptrdiff_t(i), step, free[i + std::size_t(step) - 1]);
  std::fill_n(free.begin(), narrowest, start_of<Ticks>(free, narrowest));
}

// Annealing over orders, towards a low makespan and little idle time: many narrow tasks have good schedules everywhere,
// and a depth-first search is slow to meet one.
void Search::anneal() {
  const std::size_t n = items_.size();
  const std::int64_t trials = std::min<std::int64_t>(2000 * std::int64_t(n), limits_.nodes / 2);
  Rng rng(0, "anneal", n);
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return plan_.start[std::size_t(items_[a].task)] < plan_.start[std::size_t(items_[b].task)];
  });
  Times free;
  const auto cost = [&] {
    free = free_;
    for (const std::size_t i : order) place<Ticks>(free, items_[i].gpus, items_[i].duration);
    return double(std::max(free.back(), latest_)) +
           0.5 * std::accumulate(free.begin(), free.end(), 0.0) / double(free.size());
  };
  double now = cost();
  for (std::int64_t k = 0; k < trials && best_ > proved_ && n > 1; ++k) {
    const std::size_t a = rng.below(n), b = rng.below(n);
    std::vector<std::size_t> before = order;
    if (rng.u32() & 1)
      std::swap(order[a], order[b]);
    else if (a < b)
      std::rotate(order.begin() + std::ptrdiff_t(a), order.begin() + std::ptrdiff_t(a) + 1,
                  order.begin() + std::ptrdiff_t(b) + 1);
    else
      std::rotate(order.begin() + std::ptrdiff_t(b), order.begin() + std::ptrdiff_t(a),
                  order.begin() + std::ptrdiff_t(a) + 1);
    const double then = cost(), heat = 0.02 * best_ * (1 - double(k) / double(trials));
    if (const Ticks end = std::max(free.back(), latest_); end < best_) {
      best_ = end;
      for (std::size_t i = 0; i < n; ++i) order_[i] = items_[order[i]].task;
      found(n, "annealing");
    }
    if (then <= now || rng.uniform() < std::exp((now - then) / heat))
      now = then;
    else
      order = std::move(before);
  }
}

bool Search::late() {
  if (stopped_ || target_ <= proved_) return true;
  if (++nodes_ >= limits_.nodes) stopped_ = true;
  if (nodes_ % 1024 == 0) stopped_ |= cpu_seconds() - begin_ > limits_.seconds;
  return stopped_;
}

bool Search::dominated(const Times& free, Set left) {
  auto& known = memory_[left];
  const std::size_t g = free.size();
  for (std::size_t at = 0; at < known.size();) {
    const Ticks* k = &known[at];
    bool no_later = true, no_earlier = true;
    for (std::size_t i = 0; i < g && (no_later || no_earlier); ++i)
      no_later &= k[i] <= free[i], no_earlier &= k[i] >= free[i];
    if (no_later) return true;
    if (no_earlier) {
      std::copy(known.end() - std::ptrdiff_t(g), known.end(), known.begin() + std::ptrdiff_t(at));
      known.resize(known.size() - g), remembered_ -= g;
    } else {
      at += g;
    }
  }
  if (remembered_ < (std::size_t(64) << 20) / sizeof(Ticks))
    known.insert(known.end(), free.begin(), free.end()), remembered_ += g;
  return false;
}

void Search::found(std::size_t placed, const char* by) {
  std::vector<double> free(std::size_t(p_.gpus), 0);
  std::size_t at = free.size();
  double end = 0;
  for (const auto& r : p_.running) {
    end = std::max(end, r.end);
    for (int g = 0; g < r.gpus; ++g) free[--at] = std::max(r.end, 0.0);
  }
  std::sort(free.begin(), free.end());
  std::vector<double> start(items_.size());
  for (std::size_t k = 0; k < placed; ++k) {
    const Task& t = p_.waiting[std::size_t(order_[k])];
    const double s = place<double>(free, t.gpus, t.seconds);
    start[std::size_t(order_[k])] = s;
    end = std::max(end, s + t.seconds);
  }
  if (end < plan_.makespan) plan_.makespan = end, plan_.start = start, plan_.by = by;
}

void Search::descend(const Times& free, Set left, std::size_t placed) {
  if (left == 0) {
    best_ = std::max(latest_, free.back());
    found(placed, "search");
    aim();
    return;
  }
  struct Child {
    Ticks start;
    int item;
    Ticks bound;
    Times free;
  };
  std::vector<Child> children;
  Ticks soonest_end = INT32_MAX;
  for (Set s = left; s; s &= s - 1) {
    const Item& i = items_[std::size_t(__builtin_ctzll(s))];
    soonest_end = std::min(soonest_end, start_of<Ticks>(free, i.gpus) + i.duration);
  }
  for (Set s = left; s; s &= s - 1) {
    const int k = __builtin_ctzll(s);
    const Item& i = items_[std::size_t(k)];
    if (start_of<Ticks>(free, i.gpus) >= soonest_end && left != (Set(1) << k)) continue;
    bool twin = false;  // equal tasks go in one order
    for (const auto& c : children)
      twin |= items_[std::size_t(c.item)].gpus == i.gpus && items_[std::size_t(c.item)].duration == i.duration;
    if (twin) continue;
    Child c{0, k, 0, free};
    c.start = place<Ticks>(c.free, i.gpus, i.duration);
    group(c.free, left & ~(Set(1) << k));
    c.bound = bound(c.free, left & ~(Set(1) << k));
    if (c.bound < target_) children.push_back(std::move(c));
  }
  std::stable_sort(children.begin(), children.end(), [](const Child& a, const Child& b) {
    return std::pair(a.start, a.bound) < std::pair(b.start, b.bound);
  });
  for (auto& c : children) {
    if (c.bound >= target_) continue;
    if (late()) return;
    const Set rest = left & ~(Set(1) << c.item);
    if (rest && dominated(c.free, rest)) continue;
    order_[placed] = items_[std::size_t(c.item)].task;
    descend(c.free, rest, placed + 1);
  }
}

}  // namespace

void search(const Problem& p, const Limits& limits, Plan& plan) { Search(p, limits, plan).run(); }

}  // namespace trireme::cluster
