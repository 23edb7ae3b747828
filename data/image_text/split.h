// Which pairs are kept, and how many are held out.
#pragma once
#include "data/image_text/pairs.h"

#include <vector>

namespace trireme {

// Of each caption at most `most` of the ascending `ids`, spread evenly over them; 0: all.
std::vector<std::int64_t> keep_per_caption(std::vector<std::int64_t> ids, const Pairs& pairs, std::int64_t most);

// [from, to), 0 to 1: the captions whose draw lies there, one that says nothing about what is held out. Empty: all.
using Part = std::vector<double>;
std::vector<std::int64_t> keep_part(std::vector<std::int64_t> ids, const Pairs& pairs, const Part& part);
// True for an empty one and for two ascending numbers from 0 to 1; and for two without a caption in common.
bool is_part(const Part& part);
bool apart(const Part& a, const Part& b);

// Tars and tables hold out this share of their captions by hash, but about 5,000 at most: all of them are encoded at
// each evaluation.
double held_out_share(double share, std::int64_t captions);

}  // namespace trireme
