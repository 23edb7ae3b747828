#include "comm/watchdog/rank_state.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include <unistd.h>

namespace trireme {
namespace {

constexpr std::size_t most_logs = 1024, most_text = 200;
constexpr std::size_t logs_with_calls = 64;  // of more the name, and how far they are

std::string site_text(const CallLabel& site) {
  return site.index < 0 ? site.what : std::string(site.what) + " " + std::to_string(site.index);
}

CallState call_state(const CommCall& c, const AgeOf& age) {
  return {c.sequence,        c.name,          std::string(name(c.dtype)),
          site_text(c.site), c.count,         c.count * size_of(c.dtype),
          c.complete,        age(c.begin_ns), c.continued};
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
  io.value(s.quiet);
  io.value(s.allowed);
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

std::vector<LogState> log_states(const FlightRecorder& recorder, std::size_t calls, const AgeOf& age) {
  std::vector<LogState> states;
  auto logs = recorder.logs();
  std::stable_partition(logs.begin(), logs.end(), [](const auto& log) { return log->oldest_open().sequence != 0; });
  for (const auto& log : logs) {
    if (states.size() == most_logs) break;
    LogState s{log->name, log->rank, log->size, log->entered(), log->waiting(), {}};
    const CommCall open = log->oldest_open();
    const auto recent = log->recent(states.size() < logs_with_calls ? calls : 0);
    if (open.sequence != 0 && (recent.empty() || open.sequence < recent.front().sequence))
      s.calls.push_back(call_state(open, age));
    for (const CommCall& c : recent) s.calls.push_back(call_state(c, age));
    states.push_back(std::move(s));
  }
  return states;
}

std::int64_t last_sign(const FlightRecorder& recorder) {
  std::int64_t last = recorder.signed_ns();
  for (const auto& log : recorder.logs())
    for (const CommCall& c : log->recent(1)) last = std::max({last, c.begin_ns, c.end_ns});
  return last;
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

std::string flight_record(int rank, const RankState& state, const FlightRecorder& recorder) {
  const std::int64_t now = steady_now_ns();
  const auto age = [now](std::int64_t begin_ns) { return static_cast<double>(now - begin_ns) * 1e-9; };
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
      const CallState s = call_state(c, age);
      out += first_call ? "\n" : ",\n";
      first_call = false;
      out += "   {\"sequence\": " + std::to_string(s.sequence) + ", \"operation\": " + quoted(s.operation) +
             ", \"dtype\": " + quoted(s.dtype) + ", \"count\": " + std::to_string(s.count) +
             ", \"bytes\": " + std::to_string(s.bytes) + ", \"site\": " + quoted(s.site) +
             ", \"entered\": " + number(wall - s.age) +
             ", \"end\": " + (c.end_ns ? number(wall - age(c.end_ns)) : std::string("null")) +
             ", \"complete\": " + (s.complete ? "true" : "false") + "}";
    }
    out += "]}";
  }
  return out + "]}\n";
}

}  // namespace trireme
