// Questions from process to process beside MPI, for the moment when MPI is stuck. Every rank listens on a TCP
// socket (on 127.0.0.1 only, if all ranks see the same loopback device); nothing is sent until somebody asks.
// Both ends prove that they know the job's random 128-bit key, which is never sent over it (handshake.h), or are
// dropped; all sizes and times are bounded.
//
// Everything but the constructor and wake() belongs to one thread, the one that calls pump().
#pragma once
#include "comm/communicator.h"
#include "comm/watchdog/handshake.h"

#include <chrono>
#include <map>
#include <string>
#include <vector>

namespace trireme {

class SideChannel {
 public:
  // Collective over `world`. A rank that gets no socket cannot be asked, and nothing else fails.
  explicit SideChannel(Communicator& world);
  ~SideChannel();
  SideChannel(const SideChannel&) = delete;
  SideChannel& operator=(const SideChannel&) = delete;

  enum class Answer : std::uint8_t {
    pending,
    reply,
    silent,       // its host takes the connection, its process does not answer
    gone,         // the connection is refused or was closed
    unreachable,  // its host does not answer
    unasked,      // there is no socket to ask it by: nothing is known of it
  };

  // Another rank's question; returns the reply. And its word that it is finished with this rank. Called from
  // pump(); they must not ask.
  std::function<std::string(int rank, char question)> on_question;
  std::function<void(int rank)> on_end;

  void ask(int rank, char question);  // again: starts over
  Answer answer(int rank) const;      // pending also where nothing was asked
  void give_up(int rank);             // waits no longer: a pending answer becomes what it looks like so far
  const std::string& reply(int rank) const;
  void hang_up(int rank);       // closes the connection of a rank that replied, and keeps the reply
  void forget(int rank);        // closes the connection
  void end(int rank);           // tells a rank that replied that the asker is finished
  std::size_t pending() const;  // questions under way
  // Waits up to `timeout` for something to happen and handles it.
  void pump(std::chrono::milliseconds timeout);
  void wake();                                  // ends a pump(), any thread
  std::uint16_t port() const { return port_; }  // where this rank listens; 0: nowhere

 private:
  using Clock = std::chrono::steady_clock;
  struct Address {
    unsigned char ip[16] = {};  // IPv4 as ::ffff:a.b.c.d
  };
  struct Peer {
    std::vector<Address> addresses;
    std::uint16_t port = 0;
  };
  struct Attempt {
    int fd = -1;
    bool connected = false, proved = false;  // proved: it is that rank of this job
    std::string in;
    Handshake handshake;
  };
  struct Question {
    std::vector<Attempt> attempts;
    char what = 0;
    Answer answer = Answer::pending;
    bool connected = false, refused = false, no_socket = false;
    std::string reply;
  };
  struct Incoming {
    int fd = -1;
    int rank = -1;  // known once it has proved that it knows the key
    Clock::time_point since;
    std::string in, out;
    Handshake handshake;
    bool greeted = false;
  };

  bool listen(bool loopback_only);
  static int connect_to(const Address& address, std::uint16_t port);
  void step(int rank, Question& q, Attempt& a);
  bool greet(int rank, Question& q, Attempt& a);  // the three of an attempt: false: over
  bool prove(const Question& q, Attempt& a);
  bool take_reply(int rank, Question& q, Attempt& a);
  void settle(Question& q);
  void accept_all();
  bool serve(Incoming& c, short events);  // false: over
  bool listen_to(Incoming& c);            // the same

  const int rank_;
  std::string key_;
  std::vector<Peer> peers_;
  int listener_ = -1, wake_ = -1;
  std::uint16_t port_ = 0;
  std::map<int, Question> questions_;
  std::vector<Incoming> incoming_;
};

// Of a rank that did not reply, for a line.
std::string silence(SideChannel::Answer answer);

}  // namespace trireme
