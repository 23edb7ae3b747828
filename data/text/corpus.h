// Plain text for pretraining a language model: documents, tokenised once and packed into sequences of one length.
#pragma once
#include "data/dataset.h"
#include "data/text/bpe.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace trireme {

struct CorpusSpec {
  // Each: wordnet, gcide (of their packages), arithmetic (generated, all levels), or a .txt file, where an empty line
  // or the end of a file ends a document.
  std::vector<std::string> sources;
  std::int64_t length = 256;        // ids of a sequence
  double validation_share = 0.01;   // of the documents
  std::int64_t arithmetic = 20000;  // problems
  std::uint64_t seed = 1;           // of the order of documents, of what is held out, and of the problems
};

// DataError: a package is missing (says which), a file is no text.
std::vector<std::string> corpus_documents(const CorpusSpec& spec);

// Documents in the order that the seed gives, each ended by eos, laid end to end and cut into sequences; what is left
// at the end is dropped. Column "ids": i64 [b, length]. The same on any number of ranks. Thread safe.
class PackedText final : public Dataset {
 public:
  // Ids are kept in the cache (data/file.h: data_cache), one file for each corpus and tokenizer: one rank should come
  // first.
  PackedText(const CorpusSpec& spec, const BytePairTokenizer& tokenizer);
  ~PackedText() override;

  std::int64_t size() const override;  // sequences to train on, then those held out
  std::int64_t train() const;          // the first so many
  std::int64_t tokens() const;
  Batch read(std::span<const std::int64_t> ids, std::int64_t epoch) const override;
  const std::string& identity() const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

}  // namespace trireme
