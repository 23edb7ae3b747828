#include "data/text/jsonl.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/json.h"

#include <algorithm>

namespace trireme {
namespace {

using nlohmann::json;

constexpr std::int64_t max_file = std::int64_t(4) << 30;
constexpr const char* shapes =
    "use {instruction, input, output}, {messages: [{role, content}]} or, for pairs, {prompt, chosen, rejected}";

const std::string& text(const json& object, const char* key, const std::string& where) {
  const auto it = object.find(key);
  if (it == object.end()) throw DataError(where, std::string("has no `") + key + "`", shapes);
  if (!it->is_string())
    throw DataError(where, std::string("`") + key + "` is no text but " + it->type_name(), "write it in quotes");
  return it->get_ref<const std::string&>();
}

std::vector<Message> messages(const json& list, const std::string& where) {
  if (!list.is_array() || list.empty()) throw DataError(where, "`messages` is no list of messages", shapes);
  std::vector<Message> out;
  for (const json& m : list) {
    if (!m.is_object()) throw DataError(where, "a message is no object", shapes);
    out.push_back({text(m, "role", where), text(m, "content", where), ""});
  }
  return out;
}

// A text, or a list with one message of the assistant.
std::string answer(const json& row, const char* key, const std::string& where) {
  const json& value = row[key];
  if (!value.is_array()) return text(row, key, where);
  const auto all = messages(value, where);
  if (all.size() != 1 || all[0].role != "assistant")
    throw DataError(where, std::string("`") + key + "` is not one message of the assistant",
                    "put the others into `prompt`");
  return all[0].content;
}

enum class Shape { instruction, messages, pair };

// A line may serve both objectives.
Shape shape_of(const json& row, bool pairs, const std::string& where) {
  if (!row.is_object()) throw DataError(where, "is no JSON object, or cut short", shapes);
  const bool pair = row.contains("chosen") && row.contains("rejected");
  if (pairs && !pair) throw DataError(where, "holds no preference pair", "write {prompt, chosen, rejected}");
  if (pairs) return Shape::pair;
  if (row.contains("messages")) return Shape::messages;
  if (row.contains("instruction")) return Shape::instruction;
  if (pair) throw DataError(where, "holds a preference pair", "choose the objective dpo, or another file");
  throw DataError(where, "has none of the known shapes", shapes);
}

Conversation conversation(const json& row, Shape shape, const std::string& where) {
  Conversation c;
  c.where = where;
  if (shape == Shape::instruction) {
    Message user{"user", text(row, "instruction", where), ""};
    if (row.contains("input") && !row["input"].is_null()) user.input = text(row, "input", where);
    c.messages = {std::move(user), {"assistant", text(row, "output", where), ""}};
  } else if (shape == Shape::messages) {
    c.messages = messages(row["messages"], where);
    if (std::none_of(c.messages.begin(), c.messages.end(), [](const Message& m) { return m.role == "assistant"; }))
      throw DataError(where, "no message is the assistant's", "give each conversation an answer");
  } else {
    const bool list = row.contains("prompt") && row["prompt"].is_array();
    c.messages = list ? messages(row["prompt"], where) : std::vector<Message>{{"user", text(row, "prompt", where), ""}};
    c.chosen = answer(row, "chosen", where);
    c.rejected = answer(row, "rejected", where);
  }
  return c;
}

class Rows {
 public:
  Rows(const std::string& path, bool pairs) : path_(path), pairs_(pairs) {}

  void add(const json& row, const std::string& where) {
    const Shape shape = shape_of(row, pairs_, where);
    if (all_.empty()) shape_ = shape;
    if (shape != shape_) throw DataError(where, "has another shape than the lines before", "keep one shape in a file");
    all_.push_back(conversation(row, shape, where));
  }
  std::vector<Conversation> take() {
    if (all_.empty()) throw DataError(path_, "holds no conversation", shapes);
    return std::move(all_);
  }

 private:
  const std::string& path_;
  bool pairs_;
  Shape shape_ = Shape::messages;
  std::vector<Conversation> all_;
};

}  // namespace

std::vector<Conversation> read_conversations(const std::string& path, bool pairs) {
  const auto bytes = read_file(path, max_file);
  std::string_view rest(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (rest.starts_with("\xEF\xBB\xBF")) rest.remove_prefix(3);
  Rows rows(path, pairs);
  if (const auto first = rest.find_first_not_of(" \t\r\n"); first != rest.npos && rest[first] == '[') {
    const json list = parse_json(rest);
    if (!list.is_array()) throw DataError(path, "is no JSON array, or cut short", "write one object a line");
    for (std::size_t i = 0; i < list.size(); ++i) rows.add(list[i], path + " item " + std::to_string(i + 1));
    return rows.take();
  }
  for (std::int64_t line = 1; !rest.empty(); ++line) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view row = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (row.find_first_not_of(" \t\r") == row.npos) continue;
    rows.add(parse_json(row), path + ":" + std::to_string(line));
  }
  return rows.take();
}

}  // namespace trireme
