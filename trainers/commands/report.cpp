// `trireme report RUN...`: one HTML page.
#include "framework/report/report.h"

#include "framework/command.h"

#include <iostream>

namespace trireme {
namespace {

struct ReportOptions {
  std::vector<std::string> runs;
  std::string out = "report.html";
};

const Commands::Entry registered({"report", "one HTML page for one or more runs", [](CommandOptions& command) {
                                    const auto o = std::make_shared<ReportOptions>();
                                    command.texts("runs", o->runs, "run folders", command.required);
                                    command.text("--out", o->out, "file to write");
                                    return [o](const CommandLine&) {
                                      write_report(o->runs, o->out);
                                      std::cout << "report: " << o->out << std::endl;
                                      return 0;
                                    };
                                  }});

}  // namespace
}  // namespace trireme
