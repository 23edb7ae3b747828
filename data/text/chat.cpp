#include "data/text/chat.h"

#include "comm/crc32c.h"
#include "comm/error.h"
#include "data/json.h"
#include "data/text/text.h"
#include "data/text/unicode.h"

#include <algorithm>
#include <limits>

namespace trireme {
namespace {

struct Named {
  const char* name;
  ChatTemplate format;
};
constexpr Named all_templates[] = {{"plain", ChatTemplate::plain},     {"alpaca", ChatTemplate::alpaca},
                                   {"chatml", ChatTemplate::chatml},   {"qwen2", ChatTemplate::qwen2},
                                   {"qwen2_5", ChatTemplate::qwen2_5}, {"qwen3", ChatTemplate::qwen3},
                                   {"llama3", ChatTemplate::llama3},   {"llama3_1", ChatTemplate::llama3_1}};

std::string all_names() {
  std::string names;
  for (const auto& t : all_templates) names += (names.empty() ? "" : ", ") + std::string(t.name);
  return names;
}

// Jinja texts that are known, by length and CRC32C of what fingerprint() leaves of them.
struct KnownText {
  std::size_t bytes;
  std::uint32_t crc;
  ChatTemplate format;
};
constexpr KnownText known_texts[] = {
#include "data/text/chat_templates.inc"
};

// Newlines are written as such or as \n: one spelling, ends trimmed.
std::string one_spelling(const std::string& jinja) {
  std::string out;
  for (std::size_t i = 0; i < jinja.size(); ++i) {
    const bool escaped = jinja.compare(i, 2, "\\n") == 0;
    out += escaped ? '\n' : jinja[i];
    i += escaped;
  }
  const auto first = out.find_first_not_of(" \n"), last = out.find_last_not_of(" \n");
  return first == out.npos ? "" : out.substr(first, last - first + 1);
}

std::string jinja_of(const BytePairTokenizer& tokenizer) {
  const auto root = parse_json(tokenizer.config());
  if (!root.is_object() || !root.contains("chat_template")) return "";
  const auto& t = root["chat_template"];
  if (t.is_string()) return t.get<std::string>();
  if (t.is_array())  // several, by name
    for (const auto& one : t)
      if (one.is_object() && one.value("name", nlohmann::json()) == "default" && one.contains("template") &&
          one["template"].is_string())
        return one["template"].get<std::string>();
  return t.is_null() ? "" : t.dump();
}

std::string spelled(const BytePairTokenizer& tokenizer, std::optional<std::int64_t> id) {
  if (!id) return "";
  return tokenizer.decode(std::vector<std::int64_t>{*id});
}

bool has_marks(ChatTemplate format, const BytePairTokenizer& t) {
  switch (format) {
    case ChatTemplate::plain:
    case ChatTemplate::alpaca:
      return t.eos() && t.encode(spelled(t, t.eos())) == std::vector<std::int64_t>{*t.eos()};
    case ChatTemplate::llama3:
    case ChatTemplate::llama3_1:
      return t.bos() && t.id("<|start_header_id|>") && t.id("<|end_header_id|>") && t.id("<|eot_id|>");
    default:
      return t.id("<|im_start|>") && t.id("<|im_end|>");
  }
}

struct Part {
  std::string text;
  bool counts = false;
};

std::string trimmed(const std::string& text) {  // as Python's str.strip
  const std::u32string all = decode_utf8(text);
  const auto first = std::find_if_not(all.begin(), all.end(), is_space);
  const auto last = std::find_if_not(all.rbegin(), std::make_reverse_iterator(first), is_space).base();
  return encode_utf8(std::u32string(first, last));
}

std::string without_newlines(std::string_view text, bool left, bool right) {
  while (left && text.starts_with('\n')) text.remove_prefix(1);
  while (right && text.ends_with('\n')) text.remove_suffix(1);
  return std::string(text);
}

std::string content_of(const Message& m) { return m.input.empty() ? m.content : m.content + "\n" + m.input; }

// Qwen3 shows the thoughts of the last turn alone, and then always a block for them.
std::string qwen3_answer(const std::string& content, bool in_last_turn, bool last) {
  constexpr std::string_view begin = "<think>", end = "</think>";
  std::string thoughts, answer = content;
  if (const auto first = content.find(end); first != content.npos) {
    thoughts = without_newlines(content.substr(0, first), false, true);
    if (const auto open = thoughts.rfind(begin); open != thoughts.npos) thoughts.erase(0, open + begin.size());
    thoughts = without_newlines(thoughts, true, false);
    answer = without_newlines(content.substr(content.rfind(end) + end.size()), true, false);
  }
  if (!in_last_turn || !(last || !thoughts.empty())) return answer;
  return "<think>\n" + without_newlines(thoughts, true, true) + "\n</think>\n\n" +
         without_newlines(answer, true, false);
}

void chatml(std::vector<Part>& parts, const std::vector<Message>& messages, ChatTemplate format, bool prompt) {
  if (messages.empty() || messages[0].role != "system") {
    if (format == ChatTemplate::qwen2)
      parts.push_back({"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"});
    if (format == ChatTemplate::qwen2_5)
      parts.push_back(
          {"<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"});
  }
  std::size_t last_user = messages.size();
  for (std::size_t i = 0; i < messages.size(); ++i)
    if (messages[i].role == "user") last_user = i;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Message& m = messages[i];
    const bool answer = m.role == "assistant", last = i + 1 == messages.size();
    std::string content = content_of(m);
    if (answer && format == ChatTemplate::qwen3) content = qwen3_answer(content, i > last_user, last);
    parts.push_back({"<|im_start|>" + m.role + "\n"});
    parts.push_back({content + "<|im_end|>", answer});
    parts.push_back({"\n"});
  }
  if (prompt) parts.push_back({"<|im_start|>assistant\n"});
}

void llama3(std::vector<Part>& parts, std::vector<Message> messages, ChatTemplate format, bool prompt,
            const std::string& bos) {
  const auto header = [](const std::string& role) { return "<|start_header_id|>" + role + "<|end_header_id|>\n\n"; };
  parts.push_back({bos});
  if (format == ChatTemplate::llama3_1) {
    const bool own = !messages.empty() && messages[0].role == "system";
    parts.push_back({header("system") + "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n" +
                     (own ? trimmed(content_of(messages[0])) : "") + "<|eot_id|>"});
    if (own) messages.erase(messages.begin());
  }
  for (const Message& m : messages) {
    parts.push_back({header(m.role)});
    parts.push_back({trimmed(content_of(m)) + "<|eot_id|>", m.role == "assistant"});
  }
  if (prompt) parts.push_back({header("assistant")});
}

// eos is written by its text, so that it is found as the added token it is. A system message replaces the first
// sentences.
void alpaca(std::vector<Part>& parts, const std::vector<Message>& messages, bool prompt, const std::string& eos) {
  const std::string response = "\n\n### Response:\n";
  if (messages.empty() || messages[0].role != "system")
    parts.push_back(
        {std::string("Below is an instruction that describes a task") +
         (messages.empty() || messages[0].input.empty() ? ". "
                                                        : ", paired with an input that provides further context. ") +
         "Write a response that appropriately completes the request."});
  for (const Message& m : messages) {
    if (m.role == "assistant") {
      parts.push_back({response});
      parts.push_back({m.content + eos, true});
    } else if (m.role == "system") {
      parts.push_back({m.content});
    } else {
      parts.push_back({"\n\n### Instruction:\n" + m.content});
      if (!m.input.empty()) parts.push_back({"\n\n### Input:\n" + m.input});
    }
  }
  if (prompt) parts.push_back({response});
}

void plain(std::vector<Part>& parts, const std::vector<Message>& messages, const std::string& eos) {
  for (const Message& m : messages) {
    const bool answer = m.role == "assistant";
    parts.push_back({content_of(m) + (answer ? eos : "\n"), answer});
  }
}

std::vector<Part> parts_of(const std::vector<Message>& messages, ChatTemplate format,
                           const BytePairTokenizer& tokenizer, bool prompt, const std::string& where) {
  for (const Message& m : messages)
    if (m.role != "system" && m.role != "user" && m.role != "assistant")
      throw DataError(where, "a message has the role `" + m.role + "`", "use system, user or assistant");
  std::vector<Part> parts;
  if (format == ChatTemplate::llama3 || format == ChatTemplate::llama3_1)
    llama3(parts, messages, format, prompt, spelled(tokenizer, tokenizer.bos()));
  else if (format == ChatTemplate::alpaca)
    alpaca(parts, messages, prompt, spelled(tokenizer, tokenizer.eos()));
  else if (format == ChatTemplate::plain)
    plain(parts, messages, spelled(tokenizer, tokenizer.eos()));
  else
    chatml(parts, messages, format, prompt);
  return parts;
}

bool of_text(ChatTemplate format) { return format == ChatTemplate::plain || format == ChatTemplate::alpaca; }

}  // namespace

std::string_view name_of(ChatTemplate format) {
  for (const auto& t : all_templates)
    if (t.format == format) return t.name;
  return "";
}

ChatTemplate chat_template(const std::string& name, const BytePairTokenizer& tokenizer, const std::string& where) {
  std::optional<ChatTemplate> format;
  for (const auto& t : all_templates)
    if (name == t.name) format = t.format;
  if (!format && name != "auto")
    throw UsageError("template", "`" + name + "` is no built-in template", "choose auto, " + all_names());
  if (!format) {
    if (const std::string jinja = one_spelling(jinja_of(tokenizer)); !jinja.empty()) {
      const std::uint32_t crc = crc32c(jinja.data(), jinja.size());
      for (const auto& known : known_texts)
        if (known.bytes == jinja.size() && known.crc == crc) format = known.format;
      if (!format)
        throw DataError(where,
                        "its chat_template is none of those that are built in (it begins `" +
                            jinja.substr(0, std::min(jinja.find('\n'), std::size_t(60))) + "`)",
                        "say `template:` " + all_names());
    } else {
      format = has_marks(ChatTemplate::llama3, tokenizer)   ? ChatTemplate::llama3
               : has_marks(ChatTemplate::chatml, tokenizer) ? ChatTemplate::chatml
                                                            : ChatTemplate::alpaca;
    }
  }
  if (!has_marks(*format, tokenizer))
    throw UsageError("template",
                     "the tokenizer of " + where + " lacks the marks of `" + std::string(name_of(*format)) + "`",
                     of_text(*format) ? "name an eos_token in its tokenizer_config.json"
                                      : "choose plain or alpaca, or another model");
  return *format;
}

Example encode_chat(const std::vector<Message>& messages, ChatTemplate format, const BytePairTokenizer& tokenizer,
                    std::int64_t length, bool full, const std::string& where) {
  std::string text;
  std::vector<TokenSpan> counted;  // bytes of `text`
  for (const Part& part : parts_of(messages, format, tokenizer, false, where)) {
    const std::size_t first = text.size();
    text += tokenizer.normalized(part.text);  // each by itself: no part begins with a character that composes
    if (part.counts) counted.push_back({first, text.size()});
  }
  std::vector<TokenSpan> spans;
  const auto ids = tokenizer.encode(text, of_text(format), &spans);
  Example out;
  std::size_t c = 0;
  for (std::size_t i = 0; i < std::min(ids.size(), std::size_t(length)); ++i) {
    while (c < counted.size() && counted[c].last <= spans[i].first) ++c;
    out.ids.push_back(std::int32_t(ids[i]));
    out.mask.push_back(full || (c < counted.size() && spans[i].last > counted[c].first));
  }
  return out;
}

std::vector<std::int32_t> encode_prompt(const std::vector<Message>& messages, ChatTemplate format,
                                        const BytePairTokenizer& tokenizer, const std::string& where) {
  std::string text;
  for (const Part& part : parts_of(messages, format, tokenizer, true, where)) text += part.text;
  auto ids = tokenizer.encode(text, of_text(format));
  return {ids.begin(), ids.end()};
}

std::int64_t end_of_answer(ChatTemplate format, const BytePairTokenizer& tokenizer) {
  const auto id = of_text(format)                                                      ? tokenizer.eos()
                  : format == ChatTemplate::llama3 || format == ChatTemplate::llama3_1 ? tokenizer.id("<|eot_id|>")
                                                                                       : tokenizer.id("<|im_end|>");
  if (!id) throw UsageError("template", "the tokenizer has no id that ends an answer", "choose another template");
  return *id;
}

}  // namespace trireme
