// Names to what they stand for: factories of recipes, codecs and hooks; descriptions of communicators, commands and
// benchmarks. Each registers itself by one static object in its own .cpp:
//
//   const Recipes::Entry registered("fastclip", [] { return std::make_unique<FastClip>(); });
//   const Communicators::Entry registered({"loopback", Ranks::threads, run_loopback});
//
// Such a .cpp must be linked as an object (OBJECT library): the linker drops it from a static library.
// Registration happens before main; after that a registry is only read, by any thread.
#pragma once
#include "comm/error.h"
#include "comm/nearest.h"

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

// One registry per type.
template <class T>
class Registry {
 public:
  struct Entry {
    Entry(std::string name, T value) { add(std::move(name), std::move(value)); }
    explicit Entry(T value) requires requires { value.name; }
    {
      std::string name(value.name);
      add(std::move(name), std::move(value));
    }
  };

  // Throws Error (bug) for a name that is taken.
  static void add(std::string name, T value) {
    const auto [at, fresh] = all().emplace(std::move(name), std::move(value));
    if (!fresh) throw Error(ExitCode::bug, "registry", "two entries are named " + at->first, "rename one");
  }

  static bool has(std::string_view name) { return all().find(name) != all().end(); }

  // `where` begins the message when the name is unknown, best the place the name was read at (Config::place).
  // Throws UsageError with the nearest known name.
  static const T& get(std::string_view name, std::string_view where = {}) {
    const auto found = all().find(name);
    if (found == all().end()) throw unknown(name, where);
    return found->second;
  }

  // Both in the order of the names.
  static std::vector<std::string> names() {
    std::vector<std::string> list;
    for (const auto& [name, value] : all()) list.push_back(name);
    return list;
  }
  static std::vector<T> values() {
    std::vector<T> list;
    for (const auto& [name, value] : all()) list.push_back(value);
    return list;
  }

 private:
  // In a function: entries register before main, in any order.
  static std::map<std::string, T, std::less<>>& all() {
    static std::map<std::string, T, std::less<>> entries;
    return entries;
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

// Of objects behind an interface. Args are what a factory is called with.
template <class Interface, class... Args>
struct Factories : Registry<std::function<std::unique_ptr<Interface>(Args...)>> {
  static std::unique_ptr<Interface> create(std::string_view name, Args... args, std::string_view where = {}) {
    return Factories::get(name, where)(std::forward<Args>(args)...);
  }
};

}  // namespace trireme
