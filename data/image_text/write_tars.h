// WebDataset shards: OUT/00000.tar, OUT/00001.tar, ...
#pragma once
#include "data/image_text/broken_samples.h"
#include "data/image_text/prepared.h"
#include "data/image_text/tar_write.h"

#include <functional>

namespace trireme {

struct WriteTarsSpec {
  std::string out;  // folder, made if need be
  std::int64_t samples = 0;
  std::int64_t shard = 1000;  // samples of one
  int digits = 5;             // of a shard's name; 0: no leading zeros (CLIP_benchmark's 0.tar)
  int threads = 2;            // each writes shards of its own
  bool force = false;         // replaces the tars that lie there
  // Adds the members of sample i, whose names begin with `key` ("00001234"). Called from several threads;
  // BrokenPicture: the sample is left out, counted and named; any other error ends it.
  std::function<void(std::int64_t i, const std::string& key, TarWriter& tar)> add;
  std::function<void(std::size_t done, std::size_t total)> progress;  // may be empty; one thread at a time
};

// The tars of a folder are to be replaced: removes them. DataError: there are some, and `force` is not set. A folder
// that is not there has none.
void remove_tars(const std::string& folder, bool force);

// Samples left out are added to `left_out`. DataError: tars lie there already, none is left, the disk is full.
void write_tars(const WriteTarsSpec& spec, BrokenSamples& left_out);

// The files of folder_data() or table_data() as they are, each with its caption. Returns the number of samples.
std::int64_t pictures_to_tars(const PrepareSpec& pictures, WriteTarsSpec spec, BrokenSamples& left_out);

// The pairs of tars as what prepare_images() takes.
PrepareSpec tars_data(const std::string& list);

}  // namespace trireme
