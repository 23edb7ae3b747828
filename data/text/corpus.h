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
  std::vector<std::string> sources;  // wordnet, gcide, arithmetic, or .txt files (data/text/documents.h)
  std::int64_t length = 256;         // ids of a sequence
  double validation_share = 0.01;    // of the documents; 0: none
  std::int64_t arithmetic = 30000;   // problems
  std::uint64_t seed = 1;            // of the order of documents, of what is held out, and of the problems
};

// All documents, in the order of the sources: for training a tokenizer. DataError: a package is missing (says which), a
// file is no text. UsageError: no source.
std::vector<std::string> corpus_documents(const CorpusSpec& spec);

// Documents in an order drawn by the seed, each ended by eos, laid end to end and cut into sequences; what is left at
// the end is dropped. Held-out documents make sequences of their own. Column "ids": i64 [b, length]. The same on any
// number of ranks. Thread safe.
class PackedText final : public Dataset {
 public:
  // Ids are kept in the cache (data/file.h: data_cache), one file for each corpus and tokenizer: let one rank come
  // first. UsageError: a tokenizer without eos; DataError: less text than one sequence to train on and one held out.
  PackedText(const CorpusSpec& spec, const BytePairTokenizer& tokenizer);
  ~PackedText() override;

  std::int64_t size() const override;  // train() sequences to train on, then those held out
  std::int64_t train() const;
  std::int64_t tokens() const;  // of all documents, eos included
  Batch read(std::span<const std::int64_t> ids, std::int64_t epoch) const override;
  const std::string& identity() const;  // of the sequences, in words and checksums

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

}  // namespace trireme
