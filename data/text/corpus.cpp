#include "data/text/corpus.h"

#include "comm/crc32c.h"
#include "comm/error.h"
#include "data/file.h"
#include "data/hdf5.h"
#include "data/mapped_file.h"
#include "data/rng.h"
#include "data/text/documents.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include <ATen/ops/empty.h>

namespace trireme {
namespace {

std::vector<std::string> documents_of(const std::string& source, const CorpusSpec& spec) {
  if (source == "wordnet") return wordnet_documents();
  if (source == "gcide") return gcide_documents();
  if (source == "arithmetic") return arithmetic_documents(spec.arithmetic, spec.seed);
  return text_documents(source);
}

// All ids one document behind the other, and where each ends.
struct Tokens {
  std::string path;
  std::unique_ptr<MappedFile> file;
  const std::int32_t* ids = nullptr;
  std::vector<std::int64_t> ends;
};

void write_tokens(const std::string& path, const std::vector<std::string>& documents,
                  const BytePairTokenizer& tokenizer, std::int64_t eos) {
  std::vector<std::int32_t> ids;
  std::vector<std::int64_t> ends;
  for (const std::string& document : documents) {
    for (const std::int64_t id : tokenizer.encode(document)) ids.push_back(std::int32_t(id));
    ids.push_back(std::int32_t(eos));
    ends.push_back(std::int64_t(ids.size()));
  }
  write_whole(path, [&](const std::string& name) {
    Hdf5File file = Hdf5File::create(name);
    const std::int64_t n = std::int64_t(ids.size()), d = std::int64_t(ends.size());
    file.create_plain_array("ids", DType::i32, {&n, 1});
    file.create_array("ends", DType::i64, {&d, 1});
    file.write_rows("ids", 0, n, ids.data());
    file.write_rows("ends", 0, d, ends.data());
    file.close();
  });
}

Tokens open_tokens(const std::string& path) {
  Tokens t;
  t.path = path;
  const Hdf5File file = Hdf5File::open(path);
  const std::int64_t documents = file.array("ends").shape.at(0), n = file.array("ids").shape.at(0);
  t.ends.resize(std::size_t(documents));
  file.read_rows("ends", 0, documents, t.ends.data());
  t.file = std::make_unique<MappedFile>(path);
  t.ids = reinterpret_cast<const std::int32_t*>(t.file->rows(std::uint64_t(file.offset("ids")), std::uint64_t(n), 4));
  if (!t.ids || t.ends.empty() || t.ends[0] < 0 || t.ends.back() != n || !std::is_sorted(t.ends.begin(), t.ends.end()))
    throw DataError(path, "is damaged", "remove it: it is made again");
  return t;
}

// Some of the documents, laid end to end.
struct Stream {
  std::vector<std::int64_t> documents, starts;  // their numbers, and where each begins; one more start: the end
  std::int64_t sequences = 0;
};

Stream lay(const Tokens& tokens, std::span<const std::int64_t> documents, std::int64_t length) {
  Stream s;
  s.documents.assign(documents.begin(), documents.end());
  s.starts.push_back(0);
  for (const std::int64_t d : documents)
    s.starts.push_back(s.starts.back() + tokens.ends[d] - (d > 0 ? tokens.ends[d - 1] : 0));
  s.sequences = s.starts.back() / length;
  return s;
}

}  // namespace

struct PackedText::Impl {
  std::int64_t length = 0;
  Tokens tokens;
  Stream train, held_out;
  std::string identity;

  void copy(const Stream& s, std::int64_t sequence, std::int64_t* out) const {
    std::int64_t at = sequence * length;
    auto d = std::size_t(std::upper_bound(s.starts.begin(), s.starts.end(), at) - s.starts.begin() - 1);
    for (std::int64_t left = length; left > 0; ++d) {
      const std::int64_t number = s.documents[d], inside = at - s.starts[d];
      const std::int64_t n = std::min(left, s.starts[d + 1] - at);
      const std::int32_t* from = tokens.ids + (number > 0 ? tokens.ends[number - 1] : 0) + inside;
      out = std::copy_n(from, n, out);
      at += n, left -= n;
    }
  }
};

std::vector<std::string> corpus_documents(const CorpusSpec& spec) {
  if (spec.sources.empty())
    throw UsageError("data.sources", "names no text", "choose wordnet, gcide, arithmetic or .txt files");
  std::vector<std::string> all;
  for (const std::string& source : spec.sources) {
    auto documents = documents_of(source, spec);
    all.insert(all.end(), std::make_move_iterator(documents.begin()), std::make_move_iterator(documents.end()));
  }
  return all;
}

PackedText::PackedText(const CorpusSpec& spec, const BytePairTokenizer& tokenizer) {
  if (!tokenizer.eos())
    throw UsageError("data", "the tokenizer has no eos, which ends documents",
                     "name an eos_token in its tokenizer_config.json");
  if (spec.length < 2 || !(spec.validation_share >= 0 && spec.validation_share < 1))
    throw UsageError(
        "data", "length " + std::to_string(spec.length) + ", validation_share " + std::to_string(spec.validation_share),
        "choose at least 2 ids and a share from 0 to below 1");
  auto impl = std::make_unique<Impl>();
  const auto documents = corpus_documents(spec);
  std::uint32_t sum = 0;
  std::size_t bytes = 0;
  for (const auto& d : documents)
    sum = crc32c(d.data(), d.size() + 1, sum), bytes += d.size();  // its 0 parts documents
  const std::string name = "tokens-" + std::to_string(bytes) + "-" + std::to_string(sum) + "-" +
                           std::to_string(crc32c(tokenizer.json().data(), tokenizer.json().size())) + "-" +
                           std::to_string(*tokenizer.eos());
  const std::string path = data_cache(name + ".h5");
  if (std::error_code error; !std::filesystem::exists(path, error))
    write_tokens(path, documents, tokenizer, *tokenizer.eos());
  impl->tokens = open_tokens(path);
  impl->length = spec.length;

  const auto n = std::int64_t(documents.size());
  const auto order = permutation(n, Rng(spec.seed, "documents"));
  if (spec.validation_share > 0 && n == 1)
    throw DataError(spec.sources.at(0), "is one document, of which none can be held out",
                    "part documents by empty lines, give more text, or hold none out");
  auto held = std::llround(double(n) * spec.validation_share);
  if (spec.validation_share > 0) held = std::clamp<std::int64_t>(held, 1, n);
  impl->train = lay(impl->tokens, std::span(order).first(std::size_t(n - held)), spec.length);
  impl->held_out = lay(impl->tokens, std::span(order).last(std::size_t(held)), spec.length);
  if (impl->train.sequences < 1 || (held > 0 && impl->held_out.sequences < 1))
    throw DataError("data.sources",
                    std::to_string(impl->train.starts.back()) + " ids to train on and " +
                        std::to_string(impl->held_out.starts.back()) + " held out are no sequence of " +
                        std::to_string(spec.length),
                    "give more text, shorter sequences or a larger validation_share");
  impl->identity = name + " length " + std::to_string(spec.length) + " held out " + std::to_string(held) + " seed " +
                   std::to_string(spec.seed);
  impl_ = std::move(impl);
}

PackedText::~PackedText() = default;
std::int64_t PackedText::size() const { return impl_->train.sequences + impl_->held_out.sequences; }
std::int64_t PackedText::train() const { return impl_->train.sequences; }
std::int64_t PackedText::tokens() const { return impl_->tokens.ends.back(); }
const std::string& PackedText::identity() const { return impl_->identity; }

Batch PackedText::read(std::span<const std::int64_t> ids, std::int64_t) const {
  Batch batch;
  batch.ids.assign(ids.begin(), ids.end());
  at::Tensor out = at::empty({std::int64_t(ids.size()), impl_->length}, at::kLong);
  auto* to = out.mutable_data_ptr<std::int64_t>();
  for (const std::int64_t id : ids) {
    if (id < 0 || id >= size())
      throw DataError("corpus", "no sequence has the number " + std::to_string(id),
                      "there are " + std::to_string(size()));
    const bool held = id >= train();
    impl_->copy(held ? impl_->held_out : impl_->train, held ? id - train() : id, to);
    to += impl_->length;
  }
  batch.columns["ids"] = out;
  return batch;
}

}  // namespace trireme
