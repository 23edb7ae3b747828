#include "data/json.h"

namespace trireme {

nlohmann::json parse_json(std::string_view text) {
  using nlohmann::json;
  bool deep = false;
  const auto shallow = [&](int depth, json::parse_event_t, json&) {
    deep = deep || depth > 8;
    return !deep;  // what lies below is parsed, but not kept
  };
  json value = json::parse(text, shallow, false);
  return deep ? json(json::value_t::discarded) : value;
}

}  // namespace trireme
