// Names to factories. A recipe, codec or communicator registers itself by one static object in its own .cpp:
//
//   static const Registry<Recipe>::Entry registered("fastclip", [] { return std::make_unique<FastClip>(); });
//
// Such a .cpp must be linked as an object (OBJECT library): the linker drops it from a static library.
// Registration happens before main; after that the registry is only read, by any thread.
#pragma once
#include "comm/error.h"
#include "framework/config/config.h"

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

// Args are what a factory is called with.
template <class Interface, class... Args>
class Registry {
 public:
  using Factory = std::function<std::unique_ptr<Interface>(Args...)>;

  struct Entry {
    Entry(std::string name, Factory factory) { add(std::move(name), std::move(factory)); }
  };

  // Throws Error (bug) for a name that is taken.
  static void add(std::string name, Factory factory) {
    const auto [at, fresh] = factories().emplace(std::move(name), std::move(factory));
    if (!fresh) throw Error(ExitCode::bug, "registry", "two entries are named " + at->first, "rename one");
  }

  // `where` begins the message when the name is unknown, best the place the name was read at (Config::place).
  static std::unique_ptr<Interface> create(std::string_view name, Args... args, std::string_view where = {}) {
    const auto found = factories().find(name);
    if (found == factories().end()) throw unknown(name, where);
    return found->second(std::forward<Args>(args)...);
  }

  // Sorted.
  static std::vector<std::string> names() {
    std::vector<std::string> all;
    for (const auto& [name, factory] : factories()) all.push_back(name);
    return all;
  }

 private:
  static std::map<std::string, Factory, std::less<>>& factories() {
    static std::map<std::string, Factory, std::less<>>
        all;  // in a function: entries register before main, in any order
    return all;
  }

  static UsageError unknown(std::string_view name, std::string_view where) {
    const auto known = names();
    const std::string near = nearest(name, known);
    std::string cure = near.empty() ? "" : "did you mean " + near + "? ";
    cure += known.empty() ? "none is built in" : "known: ";
    for (std::size_t i = 0; i < known.size(); ++i) cure += (i ? ", " : "") + known[i];
    return UsageError(where, "unknown name '" + std::string(name.substr(0, 60)) + "'", cure);
  }
};

}  // namespace trireme
