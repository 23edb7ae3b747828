// Which pairs are kept, and how many are held out.
#pragma once
#include "data/image_text/pairs.h"

namespace trireme {

// Of each caption at most `most` of the ascending `ids`, spread evenly over them; 0: all.
std::vector<std::int64_t> keep_per_caption(std::vector<std::int64_t> ids, const Pairs& pairs, std::int64_t most);

// Tars and tables hold out this share of their captions by hash, but about 5,000 at most: all of them are encoded at
// each evaluation.
double held_out_share(double share, std::int64_t captions);

}  // namespace trireme
