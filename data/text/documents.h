// Documents of plain text for pretraining a language model.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace trireme {

inline constexpr const char* wordnet_root = "/usr/share/wordnet";            // of Debian's wordnet-base
inline constexpr const char* gcide_file = "/usr/share/dictd/gcide.dict.dz";  // of Debian's dict-gcide

// WordNet's sets of synonyms, each once: `car, auto, automobile (noun): a motor vehicle ...`. `root`: where data.noun,
// data.verb, data.adj and data.adv lie. DataError naming the package.
std::vector<std::string> wordnet_documents(const std::string& root = wordnet_root);

// Entries of the Collaborative International Dictionary of English, each once, without pronunciations and marks of
// sources, a line a sense. `file`: dictd's, .dict or .dict.dz, its .index beside it. DataError naming the package.
std::vector<std::string> gcide_documents(const std::string& file = gcide_file);

// The first `problems` of training, levels in turn: the question, a newline, the worked answer.
std::vector<std::string> arithmetic_documents(std::int64_t problems, std::uint64_t seed);

// Of the user's file: an empty line ends a document. DataError: no text, none in it.
std::vector<std::string> text_documents(const std::string& file);

}  // namespace trireme
