#include "comm/watchdog/hang_report.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <set>

#include <unistd.h>

namespace trireme {
namespace {

constexpr std::size_t most_logs = 64, most_text = 200;

std::string site_text(const CallLabel& site) {
  return site.index < 0 ? site.what : std::string(site.what) + " " + std::to_string(site.index);
}

CallState call_state(const CommCall& c, std::int64_t now_ns) {
  return {c.sequence,
          c.name,
          std::string(name(c.dtype)),
          site_text(c.site),
          c.count,
          c.count * size_of(c.dtype),
          c.complete,
          static_cast<double>(now_ns - c.begin_ns) * 1e-9,
          c.continued};
}

// Little-endian numbers and counted strings, one after the other.
struct Writer {
  std::string out;
  void raw(const void* p, std::size_t n) { out.append(static_cast<const char*>(p), n); }
  void value(std::uint64_t v) { raw(&v, sizeof v); }
  void value(std::int64_t v) { raw(&v, sizeof v); }
  void value(double v) { raw(&v, sizeof v); }
  void value(int v) { value(static_cast<std::int64_t>(v)); }
  void value(bool v) { value(static_cast<std::uint64_t>(v)); }
  void value(const std::string& s) {
    const std::string cut = s.substr(0, most_text);
    value(static_cast<std::uint64_t>(cut.size()));
    raw(cut.data(), cut.size());
  }
  void size(std::size_t n, std::size_t) { value(static_cast<std::uint64_t>(n)); }
};

struct Reader {
  std::string_view in;
  bool good = true;
  void raw(void* p, std::size_t n) {
    if (in.size() < n) {
      good = false;
      return;
    }
    std::memcpy(p, in.data(), n);
    in.remove_prefix(n);
  }
  void value(std::uint64_t& v) { raw(&v, sizeof v); }
  void value(std::int64_t& v) { raw(&v, sizeof v); }
  void value(double& v) { raw(&v, sizeof v); }
  void value(int& v) {
    std::int64_t wide = 0;
    value(wide);
    v = static_cast<int>(wide);
  }
  void value(bool& v) {
    std::uint64_t wide = 0;
    value(wide);
    v = wide != 0;
  }
  void value(std::string& s) {
    std::uint64_t n = 0;
    value(n);
    good &= n <= most_text && n <= in.size();
    if (!good) return;
    s.assign(in.data(), n);
    in.remove_prefix(n);
  }
  std::size_t size(std::size_t, std::size_t most) {
    std::uint64_t n = 0;
    value(n);
    good &= n <= most;
    return good ? n : 0;
  }
};

// One function for both directions.
template <class Io, class State>
void transfer(Io& io, State& s) {
  io.value(s.phase);
  io.value(s.step);
  io.value(s.phase_age);
  io.value(s.oldest);
  const auto resize = [&io](auto& v, std::size_t most) {
    if constexpr (std::is_same_v<Io, Reader>)
      v.resize(io.size(0, most));
    else
      io.size(v.size(), most);
  };
  resize(s.logs, most_logs);
  for (auto& l : s.logs) {
    io.value(l.name);
    io.value(l.rank);
    io.value(l.size);
    io.value(l.entered);
    io.value(l.waiting);
    resize(l.calls, CommLog::ring_size);
    for (auto& c : l.calls) {
      io.value(c.sequence);
      io.value(c.operation);
      io.value(c.dtype);
      io.value(c.site);
      io.value(c.count);
      io.value(c.bytes);
      io.value(c.complete);
      io.value(c.continued);
      io.value(c.age);
    }
  }
}

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

std::vector<LogState> log_states(const FlightRecorder& recorder, std::size_t calls, std::int64_t now_ns) {
  std::vector<LogState> states;
  auto logs = recorder.logs();
  std::stable_partition(logs.begin(), logs.end(), [](const auto& log) { return log->oldest_open().sequence != 0; });
  for (const auto& log : logs) {
    if (states.size() == most_logs) break;
    LogState s{log->name, log->rank, log->size, log->stats().calls, log->waiting(), {}};
    const CommCall open = log->oldest_open();
    const auto recent = log->recent(calls);
    if (open.sequence != 0 && (recent.empty() || open.sequence < recent.front().sequence))
      s.calls.push_back(call_state(open, now_ns));
    for (const CommCall& c : recent) s.calls.push_back(call_state(c, now_ns));
    states.push_back(std::move(s));
  }
  return states;
}

std::string encode(const RankState& state) {
  Writer w;
  transfer(w, state);
  return std::move(w.out);
}

std::optional<RankState> decode(std::string_view bytes) {
  Reader r{bytes};
  RankState state;
  transfer(r, state);
  if (!r.good || !r.in.empty()) return {};
  return state;
}

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

std::string describe_hang(const std::vector<RankView>& ranks) {
  std::map<std::string, Group> groups;
  for (std::size_t r = 0; r < ranks.size(); ++r)
    if (ranks[r].state)
      for (const auto& l : ranks[r].state->logs) {
        groups[l.name].members.emplace_back(static_cast<int>(r), &l);
        groups[l.name].size = l.size;
      }
  const auto label = [](const std::vector<int>& list) {
    return (list.size() == 1 ? "rank " : "ranks ") + rank_list(list);
  };

  // Calls that differ explain all that follows them. Where some were posted by a then(), calls with one number need not
  // be the same call.
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

  // The collective that was waited for longest and that a rank has not entered, or may not have.
  const CallState* chosen = nullptr;
  const Group* its_group = nullptr;
  std::string its_name;
  bool best_missing = false;
  for (const auto& [name, group] : groups)
    for (const auto& [rank, log] : group.members)
      for (const auto& c : log->calls) {
        if (c.complete) continue;
        const bool all_heard = static_cast<int>(group.members.size()) == group.size;
        const bool missing = !all_heard || std::any_of(group.members.begin(), group.members.end(),
                                                       [&](const auto& m) { return m.second->entered < c.sequence; });
        if (chosen && (missing < best_missing || (missing == best_missing && c.age <= chosen->age))) continue;
        chosen = &c, its_group = &group, its_name = name, best_missing = missing;
      }
  std::string text;
  std::map<std::string, std::vector<int>> others;  // what they do -> who
  std::vector<std::string> order;
  const auto tell = [&](const std::string& what, int rank) {
    auto& list = others[what];
    if (list.empty()) order.push_back(what);
    list.push_back(rank);
  };
  if (chosen) {
    std::vector<int> inside, outside, silent;
    for (const auto& [rank, log] : its_group->members)
      (log->entered >= chosen->sequence ? inside : outside).push_back(rank);
    if (static_cast<int>(its_group->members.size()) < its_group->size)
      for (std::size_t r = 0; r < ranks.size(); ++r)
        if (!ranks[r].state) silent.push_back(static_cast<int>(r));
    text = collective(its_name, chosen->sequence) + with_site(*chosen) + " is not complete after " +
           seconds_text(chosen->age) + ": ";
    std::vector<int> absent = outside;
    absent.insert(absent.end(), silent.begin(), silent.end());
    std::sort(absent.begin(), absent.end());
    if (!absent.empty())
      text += label(absent) + (silent.empty()    ? " did not enter it"
                               : outside.empty() ? " did not answer"
                                                 : " did not enter it or did not answer");
    else
      text += "all its ranks entered it, so the network or MPI is stuck";
    if (!inside.empty() && !absent.empty()) text += ", " + label(inside) + (inside.size() == 1 ? " waits" : " wait");
    for (const int r : outside) tell(activity(*ranks[static_cast<std::size_t>(r)].state), r);
    for (const int r : absent)
      if (!ranks[static_cast<std::size_t>(r)].state) tell(ranks[static_cast<std::size_t>(r)].silent, r);
    if (absent.empty())
      for (const int r : inside) tell(activity(*ranks[static_cast<std::size_t>(r)].state), r);
  } else {
    text = "no rank that answers waits in a collective";
    for (std::size_t r = 0; r < ranks.size(); ++r)
      tell(ranks[r].state ? activity(*ranks[r].state) : ranks[r].silent, static_cast<int>(r));
  }
  constexpr std::size_t most_told = 8;
  for (std::size_t i = 0; i < std::min(order.size(), most_told); ++i)
    text += "; " + label(others[order[i]]) + ": " + order[i];
  if (order.size() > most_told) text += "; and " + std::to_string(order.size() - most_told) + " more kinds";
  return text;
}

namespace {

std::string quoted(const std::string& s) {
  std::string out = "\"";
  for (const char c : s) {
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04x", c);
      out += code;
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string number(double v) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6f", v);
  return text;
}

}  // namespace

std::string flight_record(int rank, const RankState& state, const FlightRecorder& recorder) {
  const std::int64_t now = steady_now_ns();
  const double wall = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  std::string out = "{\"rank\": " + std::to_string(rank) + ", \"host\": " + quoted(host) +
                    ", \"pid\": " + std::to_string(getpid()) + ", \"time\": " + number(wall) +
                    ", \"phase\": " + quoted(state.phase) + ", \"step\": " + std::to_string(state.step) +
                    ", \"seconds_in_phase\": " + number(state.phase_age) + ",\n \"communicators\": [";
  bool first_log = true;
  for (const auto& log : recorder.logs()) {
    out += first_log ? "\n" : ",\n";
    first_log = false;
    out += "  {\"name\": " + quoted(log->name) + ", \"rank\": " + std::to_string(log->rank) +
           ", \"size\": " + std::to_string(log->size) + ", \"waiting_in\": " + std::to_string(log->waiting()) +
           ", \"calls\": [";
    bool first_call = true;
    for (const CommCall& c : log->recent()) {
      const CallState s = call_state(c, now);
      out += first_call ? "\n" : ",\n";
      first_call = false;
      out += "   {\"sequence\": " + std::to_string(s.sequence) + ", \"operation\": " + quoted(s.operation) +
             ", \"dtype\": " + quoted(s.dtype) + ", \"count\": " + std::to_string(s.count) +
             ", \"bytes\": " + std::to_string(s.bytes) + ", \"site\": " + quoted(s.site) +
             ", \"entered\": " + number(wall - s.age) + ", \"end\": " +
             (c.end_ns ? number(wall - static_cast<double>(now - c.end_ns) * 1e-9) : std::string("null")) +
             ", \"complete\": " + (s.complete ? "true" : "false") + "}";
    }
    out += "]}";
  }
  return out + "]}\n";
}

}  // namespace trireme
