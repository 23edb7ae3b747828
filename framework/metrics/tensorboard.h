// TensorBoard event files, encoded by hand: length-framed protobuf records with masked CRC-32C.
#pragma once
#include "framework/io/file_io.h"

#include <cstdint>
#include <map>
#include <string>

namespace trireme {

class EventFile {
 public:
  // Starts a new events.out.tfevents.<time>.<host>[.N] in `folder`; TensorBoard joins the files of a folder. Events of
  // earlier files with step > last_step, which a resumed run will write again, are cut off, and a TensorBoard that has
  // read them is told to forget them. Rank 0 only, with the run folder locked.
  explicit EventFile(const std::string& folder, std::int64_t last_step = 0);
  void scalars(std::int64_t step, const std::map<std::string, double>& values);
  void sync() { file_.sync(); }

 private:
  EventFile(const std::string& folder, std::int64_t last_step, bool resumed);
  AppendFile file_;
};

// One record as it stands in the file; for tests.
std::string event_record(double wall_time, std::int64_t step, const std::map<std::string, double>& values);

}  // namespace trireme
