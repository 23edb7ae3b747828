#include "comm/engine/arguments.h"

#include "comm/error.h"

#include <functional>

namespace trireme {
namespace {

[[noreturn]] void refuse(Member me, Collective c, const std::string& what, std::string_view cure = {}) {
  throw CommError(place(me), std::string(name(c)) + ": " + what, cure);
}

void check_buffer(Member me, Collective c, const char* which, const ConstBuffer& b) {
  if (b.place.device != me.device) {
    const auto where = [](int d) { return d < 0 ? "in host memory" : "on device " + std::to_string(d); };
    refuse(me, c, std::string(which) + " is " + where(b.place.device) + ", not " + where(me.device),
           "copy it there first");
  }
  if (b.count > 0 && !b.data)
    refuse(me, c, std::string(which) + " is null but has " + std::to_string(b.count) + " elements");
}

void check_pair(Member me, Collective c, const ConstBuffer& in, const Buffer& out) {
  check_buffer(me, c, "in", in);
  check_buffer(me, c, "out", out);
  if (in.dtype != out.dtype)
    refuse(me, c, "in is " + std::string(name(in.dtype)) + " but out is " + std::string(name(out.dtype)));
}

void check_blocks(Member me, Collective c, const char* large, std::size_t whole, const char* small, std::size_t block) {
  const std::size_t n = static_cast<std::size_t>(me.size);
  if (whole % n != 0 || whole / n != block)
    refuse(me, c,
           std::string(large) + " has " + std::to_string(whole) + " elements, not " + std::to_string(n) +
               " times the " + std::to_string(block) + " of " + small);
}

}  // namespace

std::string_view name(Collective c) {
  switch (c) {
    case Collective::all_reduce:
      return "all_reduce";
    case Collective::reduce_scatter:
      return "reduce_scatter";
    case Collective::all_gather:
      return "all_gather";
    case Collective::all_to_all:
      return "all_to_all";
    case Collective::broadcast:
      return "broadcast";
    case Collective::barrier:
      return "barrier";
    case Collective::split:
      return "split";
    case Collective::allocate:
      return "allocate";
  }
  return "unknown";
}

std::string place(Member me) { return "rank " + std::to_string(me.rank) + " of " + std::to_string(me.size); }

void check_all_reduce(Member me, const Buffer& inout) { check_buffer(me, Collective::all_reduce, "inout", inout); }

void check_reduce_scatter(Member me, const ConstBuffer& in, const Buffer& out) {
  check_pair(me, Collective::reduce_scatter, in, out);
  check_blocks(me, Collective::reduce_scatter, "in", in.count, "out", out.count);
}

void check_all_gather(Member me, const ConstBuffer& in, const Buffer& out) {
  check_pair(me, Collective::all_gather, in, out);
  check_blocks(me, Collective::all_gather, "out", out.count, "in", in.count);
}

void check_all_to_all(Member me, const ConstBuffer& in, std::span<const std::size_t> send, const Buffer& out,
                      std::span<const std::size_t> recv) {
  constexpr auto c = Collective::all_to_all;
  check_pair(me, c, in, out);
  const std::size_t n = static_cast<std::size_t>(me.size);
  if (send.size() != n || recv.size() != n)
    refuse(me, c,
           "needs one send and one recv count a rank, got " + std::to_string(send.size()) + " and " +
               std::to_string(recv.size()));
  const auto fits = [&](std::span<const std::size_t> counts, std::size_t limit, const char* what) {
    std::size_t left = limit;
    for (std::size_t count : counts) {
      if (count > left)
        refuse(me, c, std::string(what) + " counts exceed the buffer of " + std::to_string(limit) + " elements");
      left -= count;
    }
  };
  fits(send, in.count, "send");
  fits(recv, out.count, "recv");
  const std::size_t self = static_cast<std::size_t>(me.rank);
  if (send[self] != recv[self])
    refuse(me, c,
           "sends " + std::to_string(send[self]) + " elements to itself but receives " + std::to_string(recv[self]));
}

void check_broadcast(Member me, const Buffer& inout, int root) {
  check_buffer(me, Collective::broadcast, "inout", inout);
  if (root < 0 || root >= me.size) refuse(me, Collective::broadcast, "root " + std::to_string(root) + " is not a rank");
}

bool overlap(const void* a, std::size_t a_bytes, const void* b, std::size_t b_bytes) {
  if (a_bytes == 0 || b_bytes == 0) return false;
  const auto begin_a = reinterpret_cast<std::uintptr_t>(a), begin_b = reinterpret_cast<std::uintptr_t>(b);
  return begin_a < begin_b + b_bytes && begin_b < begin_a + a_bytes;
}

std::vector<std::size_t> byte_offsets(std::span<const std::size_t> counts, DType dtype) {
  std::vector<std::size_t> offsets(counts.size() + 1);
  for (std::size_t r = 0; r < counts.size(); ++r) offsets[r + 1] = offsets[r] + counts[r] * size_of(dtype);
  return offsets;
}

}  // namespace trireme
