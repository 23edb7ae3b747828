// A test set in the layout of CLIP_benchmark and DataComp:
//   FOLDER/test/nshards.txt, FOLDER/test/0.tar ..., and beside `test`, where they apply, classnames.txt,
//   zeroshot_classification_templates.txt ("a photo of a {c}.") and dataset_type.txt ("retrieval"; else
//   classification).
// Samples: a picture (webp, png, jpg, jpeg) with .cls (number of a class), .txt (each line is a caption) or
// .json (member `caption`).
#pragma once
#include "data/image_text/tars.h"

namespace trireme {

struct EvalSet {
  std::string folder, name;  // name: of the folder
  bool retrieval = false;
  std::unique_ptr<Tars> pairs;  // ids [0, n) are the samples in the order of the tars, as CLIP_benchmark reads them
  std::vector<std::vector<std::string>> captions;  // retrieval: of each sample, at least one; as they are written
  std::vector<std::string> classes, templates;     // empty: the file is not there. A class is pairs->class_id(i)
};

// One name a line, without white space at both ends; empty lines at the end do not count. DataError: no such file, no
// text.
std::vector<std::string> read_list(const std::string& file);

// True for a folder with test/nshards.txt, or with nshards.txt: FOLDER/test or another split, such as FOLDER/train.
bool is_eval_set(const std::string& folder);

// DataError: a file is missing or says no number, a shard is missing, cut short or no tar, a class is beyond the names,
// more broken samples than the share.
EvalSet open_eval_set(const std::string& folder, double broken_share = 0.01);

}  // namespace trireme
