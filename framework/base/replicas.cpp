#include "framework/base/replicas.h"

#include "framework/base/agree.h"

#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <sstream>

namespace trireme {
namespace {

// One rank's claim to hold a parameter.
struct Claim {
  int rank = 0;
  std::string name, kind;   // kind: type and shape
  int size = 1, place = 0;  // of its replicas, and its place among them
  bool by_rows = false;
  std::int64_t first = 0, rows = 0, total = 0;
};

std::string line_of(const Param& p, const Communicator& replicas) {
  std::ostringstream s;
  s << p.name << '\t' << c10::toString(p.value.scalar_type()) << ' ' << p.value.sizes() << '\t' << replicas.size()
    << ' ' << (p.sharing.kind == Sharing::rows) << ' ' << p.sharing.first_row << ' '
    << (p.value.dim() > 0 ? p.value.size(0) : 0) << ' ' << p.sharing.total_rows;
  return s.str();
}

std::vector<Claim> claims_in(const std::string& text) {
  std::vector<Claim> claims;
  std::istringstream lines(text);
  std::string line;
  for (int rank = 0; std::getline(lines, line);) {
    if (line.empty()) {  // ends a rank
      ++rank;
      continue;
    }
    Claim c;
    c.rank = rank;
    std::istringstream s(line);
    std::getline(s, c.name, '\t');
    std::getline(s, c.kind, '\t');
    s >> c.size >> c.by_rows >> c.first >> c.rows >> c.total >> c.place;
    claims.push_back(std::move(c));
  }
  return claims;
}

[[noreturn]] void refuse(const std::string& name, const std::string& what, const std::string& cure) {
  throw Error(ExitCode::bug, "parameter " + name, what, cure);
}

std::string ranks_of(const std::vector<const Claim*>& claims) {
  std::string s = claims.size() == 1 ? "rank" : "ranks";
  for (std::size_t i = 0; i < claims.size() && i < 8; ++i) s += (i ? ", " : " ") + std::to_string(claims[i]->rank);
  return claims.size() > 8 ? s + ", ..." : s;
}

// In every group of replicas each place must hold the same thing.
void check_groups(const std::string& name, const std::vector<const Claim*>& claims) {
  std::map<std::pair<int, std::string>, std::vector<const Claim*>> alike;
  for (const auto* c : claims) {
    const std::string rows = c->by_rows ? " rows from " + std::to_string(c->first) : "";
    alike[{c->size, c->kind + rows}].push_back(c);
  }
  for (const auto& [key, some] : alike) {
    std::vector<std::size_t> held(std::size_t(key.first));
    for (const auto* c : some) ++held[std::size_t(c->place)];
    if (std::adjacent_find(held.begin(), held.end(), std::not_equal_to<>()) != held.end())
      refuse(name,
             ranks_of(some) + " hold it as " + key.second + " and share it with " + std::to_string(key.first - 1) +
                 " ranks, of which some do not",
             "register it alike on all its replicas, or name the ranks that hold it in Param::replicas");
  }
}

void check_rows(const std::string& name, const std::vector<const Claim*>& claims) {
  std::vector<std::pair<std::int64_t, std::int64_t>> parts;  // first row, rows
  for (const auto* c : claims) {
    if (c->by_rows != claims[0]->by_rows || c->total != claims[0]->total)
      refuse(name, "is one table on some ranks and another on others", "give all ranks the same kind and total_rows");
    if (c->place == 0) parts.emplace_back(c->first, c->rows);
  }
  if (!claims[0]->by_rows) return;
  std::sort(parts.begin(), parts.end());
  std::int64_t next = 0;
  for (const auto& [first, rows] : parts) {
    if (first != next)
      refuse(name, "row " + std::to_string(std::min(first, next)) + " is held twice or by no rank",
             "cut the rows so that each is held once");
    next += rows;
  }
  if (next != claims[0]->total)
    refuse(name, "holds " + std::to_string(next) + " of " + std::to_string(claims[0]->total) + " rows",
           "cut the rows so that each is held once");
}

// On rank 0: all names, by the first rank that has them; throws where the claims do not fit together.
std::string checked_names(const std::string& texts) {
  const auto claims = claims_in(texts);
  std::map<std::string, std::vector<const Claim*>> by_name;
  std::string names;
  for (const auto& c : claims) {
    auto& all = by_name[c.name];
    if (all.empty()) names += c.name + "\n";
    if (!all.empty() && all.back()->rank == c.rank)
      refuse(c.name, "is there twice", "give each parameter its own name");
    all.push_back(&c);
  }
  for (const auto& [name, all] : by_name) {
    check_groups(name, all);
    check_rows(name, all);
  }
  return names;
}

const Communicator& replicas_of(const Param& p, const Communicator& world) { return p.replicas ? *p.replicas : world; }

// Do all ranks pass the same text?
bool same_everywhere(const std::string& text, Communicator& world) {
  const auto hash = std::int64_t(std::hash<std::string>()(text));
  std::array<std::int64_t, 2> least{hash, ~hash};  // the second: the largest
  world.all_reduce({least.data(), least.size(), DType::i64}, Op::min).wait();
  return least[0] == ~least[1];
}

// Can ranks that say the same not contradict each other? Each name once, and nobody holds a part of the rows.
bool plain(const std::vector<Param>& params, const Communicator& world) {
  std::set<std::string> names;
  for (const auto& p : params) {
    if (!names.insert(p.name).second) return false;
    if (p.sharing.kind != Sharing::rows) continue;
    const bool all_rows = p.sharing.first_row == 0 && p.value.dim() > 0 && p.value.size(0) == p.sharing.total_rows;
    if (!all_rows || replicas_of(p, world).size() != world.size()) return false;
  }
  return true;
}

}  // namespace

std::vector<std::string> all_names(const std::vector<Param>& params, Communicator& world) {
  std::string lines, placed;
  std::vector<std::string> names;
  for (const auto& p : params) {
    const Communicator& replicas = replicas_of(p, world);
    const std::string line = line_of(p, replicas);
    lines += line + "\n";
    placed += line + " " + std::to_string(replicas.rank()) + "\n";
    names.push_back(p.name);
  }
  const bool same = same_everywhere(lines, world);
  // The others of a fake world repeat what this rank says.
  if (same && (world.backend() == "fake" || (world.size() > 1 && plain(params, world)))) return names;
  std::string all = gather_text(world, placed), union_of;
  agree(world, attempt([&] {
          if (world.rank() == 0) union_of = checked_names(all);
        }));
  std::int64_t size = std::int64_t(union_of.size());
  world.broadcast({&size, 1, DType::i64}, 0).wait();
  union_of.resize(std::size_t(size));
  world.broadcast({union_of.data(), union_of.size(), DType::u8}, 0).wait();
  if (same) return names;
  names.clear();
  std::istringstream s(union_of);
  for (std::string name; std::getline(s, name);) names.push_back(name);
  return names;
}

void settle_sharing(std::vector<Param>& params, Communicator& world) {
  all_names(params, world);
  std::map<Communicator*, std::vector<std::int64_t>> members;
  std::vector<Work> works;
  const std::int64_t mine = world.rank();
  for (const auto& p : params) {
    if (!p.replicas || p.replicas->size() == 1) continue;
    auto& ranks = members[p.replicas];
    if (!ranks.empty()) continue;
    ranks.resize(std::size_t(p.replicas->size()));
    works.push_back(p.replicas->all_gather({&mine, 1, DType::i64}, {ranks.data(), ranks.size(), DType::i64}));
  }
  for (auto& work : works) work.wait();
  for (auto& p : params) {
    // Also where a group happens to be all ranks: on another number of ranks it may not be.
    if (p.replicas && p.sharing.kind == Sharing::replicated) p.sharing.kind = Sharing::per_rank;
    auto& holders = p.sharing.holders;
    holders.clear();
    if (const auto found = members.find(p.replicas); found != members.end()) {
      holders.assign(found->second.begin(), found->second.end());
      std::sort(holders.begin(), holders.end());
    } else if (!p.replicas && p.sharing.kind == Sharing::rows && world.size() > 1) {
      holders.resize(std::size_t(world.size()));
      std::iota(holders.begin(), holders.end(), 0);
    }
  }
}

at::Tensor own_part(const Param& p, const at::Tensor& whole) {
  const Sharing& s = p.sharing;
  if (s.kind != Sharing::rows || whole.dim() == 0 || whole.size(0) != s.total_rows) return whole;
  return whole.narrow(0, s.first_row, p.value.size(0));
}

Sharing sharing_of(const Param& p, const Slice& slice) {
  const std::int64_t n = p.value.numel();
  if (p.sharing.kind == Sharing::per_rank) return {Sharing::per_rank};
  if (p.sharing.kind == Sharing::replicated) return {Sharing::rows, slice.begin, n};
  const std::int64_t width = n / p.value.size(0);
  return {Sharing::rows, p.sharing.first_row * width + slice.begin, p.sharing.total_rows * width};
}

}  // namespace trireme
