// Image-text data by what a user calls it.
#pragma once
#include "data/image_text/split.h"

#include <functional>
#include <memory>

namespace trireme {

struct PairsSpec {
  std::vector<std::string> files;     // sources, see open_pairs()
  std::vector<std::int64_t> weights;  // of the sources (sources.h); empty: 1 each
  std::string eval_file;              // evaluation pairs; empty: the held-out captions of the sources
  std::string index_key;              // tars: JSON member with a sample's number (tars.h)
  std::string image_column = "filepath", caption_column = "title";  // tables
  double held_out = 0.1;  // tars, tables and folders: share of the captions held out (split.h)
  Part part, eval_part;   // of the captions trained on, and to evaluate on in place of the held-out ones
  double broken_share = 0.01;
  bool whole = false;  // tars: one that is cut short is an error at any share
  int image_size = 0;  // of prepared sets known by their name
  // While the tars of one source are read for their index; from any thread.
  std::function<void(std::size_t done, std::size_t shards)> progress;
};

// A source is one of
//   openclipart                      a set that `trireme data` has prepared in the cache at image_size
//   F.h5                             a prepared file (its own split)
//   F.tar, {00..41}.tar, a.tar::b    WebDataset tars, or a folder with tars
//   F.csv, F.tsv                     a table of paths and captions
//   FOLDER/                          pictures, each with a .txt beside it
// Rank-local; tars not yet in the cache are read through, so one rank should do this first. UsageError: weights that do
// not fit; DataError with the cure for all that is wrong with a source.
std::unique_ptr<Pairs> open_pairs(const PairsSpec& spec);

// What is trained on and what is evaluated on, with the parts taken into account. Ascending.
std::vector<std::int64_t> train_ids_of(const Pairs& pairs, const PairsSpec& spec, std::int64_t max_per_caption);
std::vector<std::int64_t> held_out_ids_of(const Pairs& pairs, const PairsSpec& spec);

}  // namespace trireme
