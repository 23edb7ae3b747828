// Conversations as a model reads them: built-in templates, ids and which of them count in the loss.
#pragma once
#include "data/text/bpe.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct Message {
  std::string role, content;  // role: system, user or assistant
  std::string input;          // of an instruction; alpaca sets it apart, the others put it on the next line
};

enum class ChatTemplate {
  plain,     // contents, a line each; eos ends an answer
  alpaca,    // ### Instruction: ... ### Response: (Taori et al., 2023); eos ends an answer
  chatml,    // <|im_start|>role\n...<|im_end|>\n
  qwen2,     // chatml, with Qwen2's system message where there is none
  qwen2_5,   // likewise, Qwen2.5's
  qwen3,     // chatml; the last answer begins with a block of thoughts, empty where it has none
  llama3,    // <|start_header_id|>role<|end_header_id|>\n\n...<|eot_id|>, contents trimmed
  llama3_1,  // llama3, the system message with the template's own dates
};

// By name (the words above). "auto": the one whose Jinja text tokenizer_config.json or chat_template.jinja holds; where
// there is none, chatml or llama3 if the vocabulary has their marks, else alpaca. UsageError: another name, or marks
// that the vocabulary lacks. DataError naming `where`: a Jinja text that is not among the known.
ChatTemplate chat_template(const std::string& name, const BytePairTokenizer& tokenizer, const std::string& where);
std::string_view name_of(ChatTemplate format);

// One sample of supervised training. Both vectors are of one length.
struct Example {
  std::vector<std::int32_t> ids;
  std::vector<std::uint8_t> mask;  // 1: this id counts in the loss, as a target
};

// Of preference training (DPO). Both begin with the same prompt.
struct Pair {
  Example chosen, rejected;
};

// Ids of the whole conversation as transformers' apply_chat_template makes them; of plain and alpaca, those of the
// text, with what the post-processor adds, and eos after each answer. mask: the assistant's contents and the mark that
// ends each; `full`: every id. Cut at `length` ids. DataError naming `where`: unknown role.
Example encode_chat(const std::vector<Message>& messages, ChatTemplate format, const BytePairTokenizer& tokenizer,
                    std::int64_t length, bool full, const std::string& where);

// The ids up to where the assistant begins to speak: what a model continues.
std::vector<std::int32_t> encode_prompt(const std::vector<Message>& messages, ChatTemplate format,
                                        const BytePairTokenizer& tokenizer, const std::string& where);

// The id that ends an answer: decoding stops there. UsageError: the tokenizer has none.
std::int64_t end_of_answer(ChatTemplate format, const BytePairTokenizer& tokenizer);

}  // namespace trireme
