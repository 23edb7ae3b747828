#include "comm/watchdog/side_channel.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

namespace trireme {
namespace {

constexpr std::size_t most_addresses = 8;
constexpr std::size_t header_bytes = 12;  // of a reply: magic, rank, length
constexpr std::size_t reply_limit = 1 << 20;
constexpr std::size_t most_strangers = 64;  // or, of a large job, twice as many as it has ranks
constexpr std::chrono::seconds stranger_patience{2};
constexpr char end_word = 'E';

// What a rank tells the others about itself.
struct Card {
  std::uint64_t loopback = 0;  // ranks with the same number see the same loopback device; 0: unknown
  std::uint16_t port = 0, addresses = 0;
  unsigned char ip[most_addresses][16] = {};
};

void put(std::string& s, std::uint32_t v) { s.append(reinterpret_cast<const char*>(&v), sizeof v); }
std::uint32_t number_at(const std::string& s, std::size_t at) {
  std::uint32_t v = 0;
  std::memcpy(&v, s.data() + at, sizeof v);
  return v;
}

std::uint64_t loopback_identity() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  char space[64] = {};
  if (boot.empty() || readlink("/proc/self/ns/net", space, sizeof space - 1) <= 0) return 0;
  return std::hash<std::string>()(boot + space) | 1;
}

void map_ipv4(unsigned char* to, const in_addr& a) {
  to[10] = to[11] = 0xff;
  std::memcpy(to + 12, &a, 4);
}

// Addresses of this host that others may reach, IPv4 first.
void own_addresses(Card& card) {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return;
  for (const int family : {AF_INET, AF_INET6})
    for (const ifaddrs* i = all; i && card.addresses < most_addresses; i = i->ifa_next) {
      if (!i->ifa_addr || i->ifa_addr->sa_family != family) continue;
      if (!(i->ifa_flags & IFF_UP) || (i->ifa_flags & IFF_LOOPBACK)) continue;
      unsigned char* ip = card.ip[card.addresses];
      if (family == AF_INET) {
        map_ipv4(ip, reinterpret_cast<const sockaddr_in*>(i->ifa_addr)->sin_addr);
      } else {
        const in6_addr& a = reinterpret_cast<const sockaddr_in6*>(i->ifa_addr)->sin6_addr;
        if (IN6_IS_ADDR_LINKLOCAL(&a)) continue;
        std::memcpy(ip, &a, 16);
      }
      ++card.addresses;
    }
  freeifaddrs(all);
}

bool send_whole(int fd, const std::string& s) {
  return send(fd, s.data(), s.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(s.size());
}

bool ready_later() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace

std::string silence(SideChannel::Answer answer) {
  using enum SideChannel::Answer;
  if (answer == silent) return "stopped (its process does not answer)";
  if (answer == gone) return "gone (its process has ended)";
  return answer == unasked ? "not asked (there is no socket for it)" : "unreachable (its host does not answer)";
}

SideChannel::SideChannel(Communicator& world) : rank_(world.rank()) {
  const std::size_t n = static_cast<std::size_t>(world.size());
  key_.resize(job_key_bytes);
  if (rank_ == 0 && getrandom(key_.data(), key_.size(), 0) != static_cast<ssize_t>(key_.size())) key_.clear();
  Card mine;
  mine.loopback = loopback_identity();
  std::vector<Card> cards(n);
  const auto exchange = [&] {
    world.all_gather({&mine, sizeof mine, DType::u8}, {cards.data(), sizeof mine * n, DType::u8}).wait();
  };
  exchange();
  const bool one_loopback = std::all_of(
      cards.begin(), cards.end(), [&](const Card& c) { return c.loopback != 0 && c.loopback == cards[0].loopback; });
  wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (!key_.empty() && listen(one_loopback)) mine.port = port_;
  if (!one_loopback) own_addresses(mine);
  exchange();
  key_.resize(job_key_bytes);  // without randomness rank 0 has no port, and nobody asks it
  world.broadcast({key_.data(), key_.size(), DType::u8}, 0).wait();
  for (const Card& c : cards) {
    Peer peer;
    peer.port = cards[0].port ? c.port : 0;
    if (c.loopback != 0 && c.loopback == mine.loopback) {
      map_ipv4(peer.addresses.emplace_back().ip, {htonl(INADDR_LOOPBACK)});
    } else {
      for (std::size_t i = 0; i < std::min<std::size_t>(c.addresses, most_addresses); ++i)
        std::memcpy(peer.addresses.emplace_back().ip, c.ip[i], 16);
    }
    peers_.push_back(std::move(peer));
  }
}

SideChannel::~SideChannel() {
  for (auto& [rank, q] : questions_)
    for (auto& a : q.attempts) close(a.fd);
  for (auto& c : incoming_) close(c.fd);
  for (const int fd : {listener_, wake_})
    if (fd >= 0) close(fd);
}

bool SideChannel::listen(bool loopback_only) {
  sockaddr_in v4{};
  sockaddr_in6 v6{};
  v4.sin_family = AF_INET;
  v4.sin_addr.s_addr = htonl(loopback_only ? INADDR_LOOPBACK : INADDR_ANY);
  v6.sin6_family = AF_INET6;
  const auto open = [&](int family, const void* address, socklen_t size) {
    listener_ = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener_ < 0) return false;
    const int both = 0;
    if (family == AF_INET6) setsockopt(listener_, IPPROTO_IPV6, IPV6_V6ONLY, &both, sizeof both);
    if (bind(listener_, static_cast<const sockaddr*>(address), size) == 0 && ::listen(listener_, 1024) == 0)
      return true;
    close(std::exchange(listener_, -1));
    return false;
  };
  if (loopback_only || !open(AF_INET6, &v6, sizeof v6))
    if (!open(AF_INET, &v4, sizeof v4)) return false;
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  if (getsockname(listener_, reinterpret_cast<sockaddr*>(&bound), &size) != 0) return false;
  port_ = ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(bound).sin6_port
                                            : reinterpret_cast<sockaddr_in&>(bound).sin_port);
  return true;
}

int SideChannel::connect_to(const Address& address, std::uint16_t port) {
  sockaddr_in6 v6{};
  sockaddr_in v4{};
  std::memcpy(&v6.sin6_addr, address.ip, 16);
  const bool is_v4 = IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr);
  v6.sin6_family = AF_INET6;
  v6.sin6_port = v4.sin_port = htons(port);
  v4.sin_family = AF_INET;
  std::memcpy(&v4.sin_addr, address.ip + 12, 4);
  const int fd = socket(is_v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  const sockaddr* to = is_v4 ? reinterpret_cast<sockaddr*>(&v4) : reinterpret_cast<sockaddr*>(&v6);
  if (connect(fd, to, is_v4 ? sizeof v4 : sizeof v6) == 0 || errno == EINPROGRESS) return fd;
  const int why = errno;
  close(fd);
  errno = why;
  return -1;
}

void SideChannel::ask(int rank, char question) {
  forget(rank);
  Question& q = questions_[rank];
  q.what = question;
  const Peer& peer = peers_[static_cast<std::size_t>(rank)];
  q.no_socket = peer.port == 0;
  for (const Address& address : peer.addresses) {
    if (peer.port == 0) break;
    const int fd = connect_to(address, peer.port);
    if (fd >= 0)
      q.attempts.emplace_back().fd = fd;
    else
      q.refused |= errno == ECONNREFUSED, q.no_socket |= errno == EMFILE || errno == ENFILE || errno == ENOBUFS;
  }
  settle(q);
}

void SideChannel::hang_up(int rank) {
  const auto found = questions_.find(rank);
  if (found == questions_.end() || found->second.answer != Answer::reply) return;
  for (auto& a : found->second.attempts)
    if (a.fd >= 0) close(a.fd);
  found->second.attempts.clear();
}

void SideChannel::forget(int rank) {
  const auto found = questions_.find(rank);
  if (found == questions_.end()) return;
  for (auto& a : found->second.attempts) close(a.fd);
  questions_.erase(found);
}

void SideChannel::end(int rank) {
  const auto found = questions_.find(rank);
  if (found == questions_.end() || found->second.answer != Answer::reply) return;
  for (auto& a : found->second.attempts)
    if (send(a.fd, &end_word, 1, MSG_NOSIGNAL | MSG_DONTWAIT) != 1) continue;
}

SideChannel::Answer SideChannel::answer(int rank) const {
  const auto found = questions_.find(rank);
  return found == questions_.end() ? Answer::pending : found->second.answer;
}

void SideChannel::give_up(int rank) {
  const auto found = questions_.find(rank);
  if (found == questions_.end() || found->second.answer != Answer::pending) return;
  Question& q = found->second;
  q.answer = q.connected   ? Answer::silent
             : q.refused   ? Answer::gone
             : q.no_socket ? Answer::unasked
                           : Answer::unreachable;
  for (auto& a : q.attempts) close(a.fd);
  q.attempts.clear();
}

const std::string& SideChannel::reply(int rank) const { return questions_.at(rank).reply; }

std::size_t SideChannel::pending() const {
  return static_cast<std::size_t>(std::count_if(questions_.begin(), questions_.end(),
                                                [](const auto& q) { return q.second.answer == Answer::pending; }));
}

// With no way left to an answer.
void SideChannel::settle(Question& q) {
  if (q.answer != Answer::pending || !q.attempts.empty()) return;
  q.answer = q.refused || q.connected ? Answer::gone : q.no_socket ? Answer::unasked : Answer::unreachable;
}

// Connected, or not: says who is asking whom.
bool SideChannel::greet(int rank, Question& q, Attempt& a) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(a.fd, SOL_SOCKET, SO_ERROR, &error, &size);
  q.refused |= error == ECONNREFUSED;
  if (error != 0) return false;
  a.connected = q.connected = true;
  const std::string hello = a.handshake.hello(static_cast<std::uint32_t>(rank_), static_cast<std::uint32_t>(rank));
  return !hello.empty() && send_whole(a.fd, hello);
}

// Asks, if who answers is of this job.
bool SideChannel::prove(const Question& q, Attempt& a) {
  if (a.in.size() < Handshake::challenge_bytes) return true;
  if (!a.handshake.read_challenge(key_, std::string_view(a.in).substr(0, Handshake::challenge_bytes))) return false;
  a.in.erase(0, Handshake::challenge_bytes);
  a.proved = true;
  return send_whole(a.fd, a.handshake.question(key_, q.what));
}

bool SideChannel::take_reply(int rank, Question& q, Attempt& a) {
  if (a.in.size() < header_bytes) return true;
  const std::size_t length = number_at(a.in, 8);
  if (!a.in.starts_with(wire_magic) || number_at(a.in, 4) != static_cast<std::uint32_t>(rank) || length > reply_limit)
    return false;
  if (a.in.size() < header_bytes + length) return true;
  q.reply = a.in.substr(header_bytes, length);
  q.answer = Answer::reply;
  for (auto& other : q.attempts)
    if (&other != &a) close(std::exchange(other.fd, -1));
  return true;
}

void SideChannel::step(int rank, Question& q, Attempt& a) {
  const auto more = [&] {
    if (!a.connected) return greet(rank, q, a);
    char text[65536];
    const ssize_t got = recv(a.fd, text, sizeof text, 0);
    if (got < 0 && ready_later()) return true;
    if (got <= 0) return false;
    if (q.answer != Answer::pending) return true;
    a.in.append(text, static_cast<std::size_t>(got));
    return a.proved ? take_reply(rank, q, a) : prove(q, a);
  };
  if (!more()) close(std::exchange(a.fd, -1));
}

void SideChannel::accept_all() {
  for (;;) {
    const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    const auto strangers = std::count_if(incoming_.begin(), incoming_.end(), [](auto& c) { return c.rank < 0; });
    if (static_cast<std::size_t>(strangers) >= std::max(most_strangers, 2 * peers_.size())) {
      const auto oldest = std::find_if(incoming_.begin(), incoming_.end(), [](auto& c) { return c.rank < 0; });
      close(oldest->fd);
      incoming_.erase(oldest);
    }
    Incoming& c = incoming_.emplace_back();
    c.fd = fd;
    c.since = Clock::now();
  }
}

// Its hello is answered with a challenge, its question, with the right proof, with a reply; then one byte may follow.
bool SideChannel::listen_to(Incoming& c) {
  if (!c.greeted) {
    if (c.in.size() < Handshake::hello_bytes) return true;
    if (c.in.size() > Handshake::hello_bytes || !c.handshake.read_hello(c.in) || c.handshake.from() >= peers_.size() ||
        c.handshake.to() != static_cast<std::uint32_t>(rank_))
      return false;
    c.in.clear();
    c.greeted = true;
    c.out = c.handshake.challenge(key_);
    return !c.out.empty();
  }
  if (c.rank < 0) {
    if (c.in.size() < Handshake::question_bytes) return true;
    const auto question = c.handshake.read_question(key_, c.in);
    if (!question) return false;
    c.in.clear();
    c.rank = static_cast<int>(c.handshake.from());
    std::string reply = on_question ? on_question(c.rank, *question) : std::string();
    reply.resize(std::min(reply.size(), reply_limit));
    c.out += wire_magic;
    put(c.out, static_cast<std::uint32_t>(rank_));
    put(c.out, static_cast<std::uint32_t>(reply.size()));
    c.out += reply;
    return true;
  }
  if (c.in.empty()) return true;
  if (c.in == std::string_view(&end_word, 1) && on_end) on_end(c.rank);
  return false;
}

bool SideChannel::serve(Incoming& c, short events) {
  if (c.rank < 0 && Clock::now() - c.since > stranger_patience) return false;
  if (events & (POLLIN | POLLHUP | POLLERR)) {
    char text[256];
    const ssize_t got = recv(c.fd, text, sizeof text, 0);
    if (got == 0 || (got < 0 && !ready_later())) return false;
    if (got > 0) c.in.append(text, static_cast<std::size_t>(got));
    if (!listen_to(c)) return false;
  }
  if (!c.out.empty()) {
    const ssize_t sent = send(c.fd, c.out.data(), c.out.size(), MSG_NOSIGNAL);
    if (sent < 0 && !ready_later()) return false;
    if (sent > 0) c.out.erase(0, static_cast<std::size_t>(sent));
  }
  return true;
}

void SideChannel::pump(std::chrono::milliseconds timeout) {
  std::vector<pollfd> fds{{wake_, POLLIN, 0}, {listener_, POLLIN, 0}};  // a negative one is passed over
  for (const auto& c : incoming_)
    fds.push_back({c.fd, static_cast<short>(c.out.empty() ? POLLIN : POLLIN | POLLOUT), 0});
  for (const auto& [rank, q] : questions_)
    for (const auto& a : q.attempts) fds.push_back({a.fd, static_cast<short>(a.connected ? POLLIN : POLLOUT), 0});
  poll(fds.data(), fds.size(), static_cast<int>(timeout.count()));
  std::uint64_t count = 0;
  if (fds[0].revents && read(wake_, &count, sizeof count) < 0) count = 0;
  std::size_t at = 2;
  for (auto& c : incoming_)
    if (!serve(c, fds[at++].revents)) close(std::exchange(c.fd, -1));
  std::erase_if(incoming_, [](const auto& c) { return c.fd < 0; });
  for (auto& [rank, q] : questions_) {
    for (auto& a : q.attempts)
      if (const short events = fds[at++].revents; events && a.fd >= 0) step(rank, q, a);
    std::erase_if(q.attempts, [](const auto& a) { return a.fd < 0; });
    settle(q);
  }
  if (fds[1].revents) accept_all();
}

void SideChannel::wake() {
  const std::uint64_t one = 1;
  if (write(wake_, &one, sizeof one) < 0) return;
}

}  // namespace trireme
