// Conversations that users bring, as JSON lines.
#pragma once
#include "data/text/chat.h"

#include <string>
#include <vector>

namespace trireme {

struct Conversation {
  std::vector<Message> messages;  // of a pair: the prompt alone
  std::string chosen, rejected;   // of a pair
  std::string where;              // FILE:LINE
};

// One of these shapes, the same in all lines; empty lines are skipped. A file whose first character is `[` holds one
// JSON array of such objects instead.
//   {"instruction": , "input": (absent or empty: none), "output": }
//   {"messages": [{"role": , "content": }, ...]}      one of them, at least, the assistant's
//   {"prompt": , "chosen": , "rejected": }            each a text or a list of messages; needs `pairs`, and `pairs`
//   needs it
// DataError FILE:LINE: no JSON, another shape, a text that is none.
std::vector<Conversation> read_conversations(const std::string& path, bool pairs);

}  // namespace trireme
