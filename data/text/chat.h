// Conversations as a model reads them: built-in templates, ids and which of them count in the loss.
#pragma once
#include "data/text/bpe.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct Message {
  std::string role, content;  // system, user or assistant
};

enum class ChatTemplate {
  plain,    // contents, a line each: no marks but eos at the end of an answer
  alpaca,   // ### Instruction: ... ### Response: (Taori et al., 2023)
  chatml,   // <|im_start|>role\n...<|im_end|>\n
  qwen2,    // chatml that puts Qwen2's system message first where there is none
  qwen2_5,  // likewise, Qwen2.5's
  llama3,   // <|start_header_id|>role<|end_header_id|>\n\n...<|eot_id|>, contents trimmed
};

// plain, alpaca, chatml, qwen2, qwen2_5 or llama3, by name; "auto": the one whose Jinja text tokenizer_config.json
// holds, chatml or llama3 by their marks' and alpaca otherwise where it holds none. UsageError for another name;
// DataError naming the file for a Jinja text that is not among the known.
ChatTemplate chat_template(const std::string& name, const BytePairTokenizer& tokenizer, const std::string& where);

// One sample of supervised training. Both vectors are of one length.
struct Example {
  std::vector<std::int32_t> ids;
  std::vector<std::uint8_t> mask;  // 1: this id counts in the loss (as a target)
};

// Of preference training (DPO). Both begin with the same prompt.
struct Pair {
  Example chosen, rejected;
};

// Ids of the whole conversation as transformers' apply_chat_template makes them. mask: contents of the assistant and
// the mark that ends each; `full`: every id but the first. Longer ones are cut at `length` ids. UsageError: a mark of
// the template is no token of the tokenizer. DataError naming `where`: unknown role.
Example encode_chat(const std::vector<Message>& messages, ChatTemplate format, const BytePairTokenizer& tokenizer,
                    std::int64_t length, bool full, const std::string& where);

// The ids up to where the assistant begins to speak: what a model continues.
std::vector<std::int32_t> encode_prompt(const std::vector<Message>& messages, ChatTemplate format,
                                        const BytePairTokenizer& tokenizer, const std::string& where);

// The id that ends an answer: decoding stops there.
std::int64_t end_of_answer(ChatTemplate format, const BytePairTokenizer& tokenizer);

}  // namespace trireme
