// `trireme report RUN...`: one HTML page.
#include "framework/command.h"
#include "framework/report/report.h"

#include <iostream>

#include <CLI/CLI.hpp>

namespace trireme {
namespace {

struct ReportOptions {
  std::vector<std::string> runs;
  std::string out = "report.html";
};

const Commands::Entry registered({"report", "one HTML page for one or more runs", [](CLI::App& command) {
                                    const auto o = std::make_shared<ReportOptions>();
                                    command.add_option("runs", o->runs, "run folders")->required();
                                    command.add_option("--out", o->out, "file to write");
                                    return [o](const CommandLine&) {
                                      write_report(o->runs, o->out);
                                      std::cout << "report: " << o->out << std::endl;
                                      return 0;
                                    };
                                  }});

}  // namespace
}  // namespace trireme
