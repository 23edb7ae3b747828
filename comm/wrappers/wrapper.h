// What communicators that change the behaviour of another one share: everything they leave as it is.
#pragma once
#include "comm/communicator.h"

namespace trireme {

class Wrapper : public Communicator {
 public:
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  std::shared_ptr<void> allocate(std::size_t bytes) override { return inner_.allocate(bytes); }
  bool capturable() const override { return inner_.capturable(); }
  void abort(int code, std::string_view why) noexcept override { inner_.abort(code, why); }
  std::string_view backend() const override { return inner_.backend(); }

 protected:
  // `inner` must outlive this in the first form.
  explicit Wrapper(Communicator& inner) : inner_(inner) {}
  explicit Wrapper(std::unique_ptr<Communicator> inner) : owned_(std::move(inner)), inner_(*owned_) {}

  std::unique_ptr<Communicator> owned_;
  Communicator& inner_;
};

}  // namespace trireme
