#include "comm/watchdog/hang_report.h"

#include <algorithm>
#include <cstdio>
#include <map>

#include <unistd.h>

namespace trireme {
namespace {

std::string bytes_text(std::uint64_t bytes) {
  char text[32];
  if (bytes < 10240)
    std::snprintf(text, sizeof text, "%llu bytes", static_cast<unsigned long long>(bytes));
  else if (bytes < 10485760)
    std::snprintf(text, sizeof text, "%.4g KiB", static_cast<double>(bytes) / 1024);
  else
    std::snprintf(text, sizeof text, "%.4g MiB", static_cast<double>(bytes) / 1048576);
  return text;
}

std::string seconds_text(double s) {
  char text[32];
  std::snprintf(text, sizeof text, s < 10 ? "%.1f s" : "%.0f s", s);
  return text;
}

// "all_reduce of 1024 f32, 4096 bytes"
std::string content(const CallState& c) {
  if (c.operation == "barrier" || c.operation == "split") return c.operation;
  return c.operation + " of " + std::to_string(c.count) + " " + c.dtype + ", " + bytes_text(c.bytes);
}

std::string with_site(const CallState& c) { return " (" + content(c) + (c.site.empty() ? "" : ", at " + c.site) + ")"; }

std::string collective(const std::string& communicator, std::uint64_t sequence) {
  return "collective " + std::to_string(sequence) + " of \"" + communicator + "\"";
}

std::string where(const RankState& s) {
  if (s.phase.empty()) return "at its start";
  return "in " + s.phase + (s.step > 0 ? " after step " + std::to_string(s.step) : "");
}

// "in the loader of step 12, last collective 56 of "grad" (all_reduce ...)"
std::string activity(const RankState& s) {
  const CallState* last = nullptr;
  const LogState* its_log = nullptr;
  for (const auto& l : s.logs)
    for (const auto& c : l.calls) {
      const bool later = !last || c.age < last->age;
      const bool waits = l.waiting == c.sequence && !c.complete;
      if (waits) return "waits in " + collective(l.name, c.sequence) + with_site(c) + ", " + where(s);
      if (later) last = &c, its_log = &l;
    }
  if (!last) return where(s) + ", no collective yet";
  return where(s) + ", last collective " + std::to_string(last->sequence) + " of \"" + its_log->name + "\"" +
         with_site(*last) + " " + seconds_text(last->age) + " ago";
}

// One rank's call of a sequence, and whose.
struct Seen {
  int rank;
  const CallState* call;
};

// All that is known about one communicator.
struct Group {
  std::vector<std::pair<int, const LogState*>> members;  // world rank
  int size = 0;
};

}  // namespace

std::string rank_list(const std::vector<int>& ranks) {
  std::string text;
  for (std::size_t i = 0; i < ranks.size();) {
    std::size_t j = i;
    while (j + 1 < ranks.size() && ranks[j + 1] == ranks[j] + 1) ++j;
    text += (text.empty() ? "" : ",") + std::to_string(ranks[i]);
    if (j > i) text += (j == i + 1 ? "," : "-") + std::to_string(ranks[j]);
    i = j + 1;
  }
  return text;
}

namespace {

std::string label(const std::vector<int>& ranks) { return (ranks.size() == 1 ? "rank " : "ranks ") + rank_list(ranks); }

// What ranks do, in the order in which it is told; those that do the same together.
class Activities {
 public:
  void tell(const std::string& what, int rank) {
    auto& list = who_[what];
    if (list.empty()) order_.push_back(what);
    list.push_back(rank);
  }
  void tell(const RankView& view, int rank) { tell(view.state ? activity(*view.state) : view.silent, rank); }
  std::string text() const {
    constexpr std::size_t most_told = 8;
    std::string all;
    for (std::size_t i = 0; i < std::min(order_.size(), most_told); ++i)
      all += "; " + label(who_.at(order_[i])) + ": " + order_[i];
    if (order_.size() > most_told) all += "; and " + std::to_string(order_.size() - most_told) + " more kinds";
    return all;
  }

 private:
  std::map<std::string, std::vector<int>> who_;
  std::vector<std::string> order_;
};

using Groups = std::map<std::string, Group>;

Groups groups_of(const std::vector<RankView>& ranks) {
  Groups groups;
  for (std::size_t r = 0; r < ranks.size(); ++r)
    if (ranks[r].state)
      for (const auto& l : ranks[r].state->logs) {
        groups[l.name].members.emplace_back(static_cast<int>(r), &l);
        groups[l.name].size = l.size;
      }
  return groups;
}

// Calls that differ explain all that follows them. Where some were posted by a then(), calls with one number need not
// be the same call. Empty: there are none.
std::string different_calls(const Groups& groups) {
  for (const auto& [name, group] : groups) {
    if (std::any_of(group.members.begin(), group.members.end(), [](const auto& m) {
          return std::any_of(m.second->calls.begin(), m.second->calls.end(), [](const auto& c) { return c.continued; });
        }))
      continue;
    std::map<std::uint64_t, Seen> first;
    for (const auto& [rank, log] : group.members)
      for (const auto& c : log->calls) {
        const auto [found, fresh] = first.try_emplace(c.sequence, Seen{rank, &c});
        const CallState& other = *found->second.call;
        const bool same_size = c.operation == "all_to_all" || c.count == other.count;
        if (!fresh && (c.operation != other.operation || c.dtype != other.dtype || !same_size))
          return collective(name, c.sequence) + ": rank " + std::to_string(found->second.rank) + " and rank " +
                 std::to_string(rank) + " make different calls: " + content(other) +
                 (other.site.empty() ? "" : " at " + other.site) + " and " + content(c) +
                 (c.site.empty() ? "" : " at " + c.site);
      }
  }
  return {};
}

// Ranks of it of which nobody has said how far they are.
int unheard(const Group& group) { return group.size - static_cast<int>(group.members.size()); }

struct Stuck {
  const CallState* call = nullptr;  // null: nobody waits
  const Group* group = nullptr;
  std::string name;
};

// The collective that was waited for longest of those that a rank to blame has not entered; then of those that any has
// not, or may not have; then of all.
Stuck stuck_collective(const Groups& groups, const std::vector<RankView>& ranks, const std::vector<bool>& alive) {
  const auto to_blame = [&](std::size_t r) { return alive.empty() || !alive[r]; };
  bool silent = false;
  for (std::size_t r = 0; r < ranks.size(); ++r) silent |= !ranks[r].state && to_blame(r);
  Stuck stuck;
  int best = 0;
  for (const auto& [name, group] : groups)
    for (const auto& [rank, log] : group.members)
      for (const auto& c : log->calls) {
        if (c.complete) continue;
        int missing = unheard(group) > 0 ? 1 + silent : 0;
        for (const auto& [other, its] : group.members)
          if (its->entered < c.sequence) missing = std::max(missing, 1 + to_blame(static_cast<std::size_t>(other)));
        if (stuck.call && (missing < best || (missing == best && c.age <= stuck.call->age))) continue;
        stuck = {&c, &group, name};
        best = missing;
      }
  return stuck;
}

std::string describe_stuck(const Stuck& stuck, const std::vector<RankView>& ranks, const std::vector<bool>& alive) {
  std::vector<int> inside, outside, silent, busy;
  for (const auto& [rank, log] : stuck.group->members) {
    const bool at_work = !alive.empty() && alive[static_cast<std::size_t>(rank)];
    (log->entered >= stuck.call->sequence ? inside : at_work ? busy : outside).push_back(rank);
  }
  if (unheard(*stuck.group) > 0)
    for (std::size_t r = 0; r < ranks.size(); ++r)
      if (!ranks[r].state) silent.push_back(static_cast<int>(r));
  std::vector<int> absent = outside;
  absent.insert(absent.end(), silent.begin(), silent.end());
  std::sort(absent.begin(), absent.end());
  std::string text = collective(stuck.name, stuck.call->sequence) + with_site(*stuck.call) + " is not complete after " +
                     seconds_text(stuck.call->age) + ": ";
  if (!absent.empty() || !busy.empty())
    text += label(absent.empty() ? busy : absent) + (silent.empty()    ? " did not enter it"
                                                     : outside.empty() ? " did not answer"
                                                                       : " did not enter it or did not answer");
  else if (unheard(*stuck.group) > 0)
    text +=
        "ranks that answer do not know that communicator, " + label(inside) + (inside.size() == 1 ? " waits" : " wait");
  else
    text += "all its ranks entered it, so the network or MPI is stuck";
  if (!inside.empty() && !(absent.empty() && busy.empty()))
    text += ", " + label(inside) + (inside.size() == 1 ? " waits" : " wait");
  if (!busy.empty()) text += ", " + label(busy) + (busy.size() == 1 ? " is" : " are") + " at work";
  Activities activities;
  for (const auto& list : {outside, silent, !absent.empty() ? std::vector<int>() : busy.empty() ? inside : busy})
    for (const int r : list) activities.tell(ranks[static_cast<std::size_t>(r)], r);
  return text + activities.text();
}

// What a rank waits in: the call, and the ranks that it waits for.
struct OpenWait {
  std::vector<std::size_t> absent;  // that have not entered it, as far as is known
  double entered = 0;               // seconds since the last of those inside did
};

// None: it waits in no call. Its host waits in one; or its device may, where that one was not entered long before the
// rank's last sign: what was posted for later, as a round of a scheduler, it does not wait in.
std::optional<OpenWait> wait_of(const RankView& view, const Groups& groups, const std::vector<RankView>& ranks) {
  const CallState* oldest = nullptr;
  const LogState* in = nullptr;
  const double longest = view.quiet + view.allowed / 4;
  bool host = false;
  for (const auto& log : view.state->logs)
    for (const auto& c : log.calls) {
      const bool waits = log.waiting == c.sequence;
      if (c.complete || (!waits && (host || c.age > longest))) continue;
      if (oldest && waits == host && c.age <= oldest->age) continue;
      oldest = &c, in = &log, host = waits;
    }
  if (!oldest) return {};
  const Group& group = groups.at(in->name);
  OpenWait wait{{}, oldest->age};
  std::vector<bool> member(ranks.size());
  for (const auto& [rank, log] : group.members) {
    member[static_cast<std::size_t>(rank)] = true;
    if (log->entered < oldest->sequence) wait.absent.push_back(static_cast<std::size_t>(rank));
    for (const auto& c : log->calls)
      if (c.sequence == oldest->sequence) wait.entered = std::min(wait.entered, c.age);
  }
  // Who else is of it is not known: silent ranks, and where these are too few, such as have not made it yet.
  int left = unheard(group);
  for (const bool answers : {false, true}) {
    if (left <= 0) break;
    for (std::size_t r = 0; r < ranks.size(); ++r)
      if (!member[r] && ranks[r].state.has_value() == answers) wait.absent.push_back(r), --left;
  }
  return wait;
}

struct Lives {
  std::vector<bool> alive;
  std::vector<std::optional<OpenWait>> waits;
};

Lives lives_of(const std::vector<RankView>& ranks) {
  const Groups groups = groups_of(ranks);
  Lives lives{std::vector<bool>(ranks.size()), std::vector<std::optional<OpenWait>>(ranks.size())};
  auto& [alive, waits] = lives;
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    alive[r] = ranks[r].allowed <= 0 || ranks[r].quiet <= ranks[r].allowed;
    if (ranks[r].state) waits[r] = wait_of(ranks[r], groups, ranks);
    // Where the last has just entered, the call has begun just now.
    if (waits[r] && waits[r]->absent.empty() && waits[r]->entered <= ranks[r].allowed) alive[r] = true;
  }
  for (bool more = true; more;) {
    more = false;
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      if (alive[r] || !waits[r] || waits[r]->absent.empty()) continue;
      if (!std::ranges::all_of(waits[r]->absent, [&](std::size_t a) { return alive[a]; })) continue;
      alive[r] = more = true;
    }
  }
  return lives;
}

}  // namespace

std::vector<bool> ranks_alive(const std::vector<RankView>& ranks) { return lives_of(ranks).alive; }

// One that is not alive has been quiet for longer than it is allowed, so it has waited for as long.
bool one_waits_in_vain(const std::vector<RankView>& ranks) {
  const Lives lives = lives_of(ranks);
  for (std::size_t r = 0; r < ranks.size(); ++r)
    if (lives.waits[r] && !lives.alive[r]) return true;
  return false;
}

void print_line(std::string_view line) {
  std::string text(line);
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
  text += '\n';
  if (write(STDERR_FILENO, text.data(), text.size()) < 0) std::fputs(text.c_str(), stderr);
}

std::string describe_hang(const std::vector<RankView>& ranks, const std::vector<bool>& alive) {
  const Groups groups = groups_of(ranks);
  if (const std::string different = different_calls(groups); !different.empty()) return different;
  if (const Stuck stuck = stuck_collective(groups, ranks, alive); stuck.call)
    return describe_stuck(stuck, ranks, alive);
  Activities activities;
  for (std::size_t r = 0; r < ranks.size(); ++r) activities.tell(ranks[r], static_cast<int>(r));
  return "no rank that answers waits in a collective" + activities.text();
}

}  // namespace trireme
