// `trireme report RUN...`: one HTML page.
#include "framework/report/report.h"

#include "comm/error.h"
#include "framework/command.h"
#include "trainers/run_folder.h"
#include "trainers/sweep/run.h"

#include <algorithm>
#include <iostream>

namespace trireme {
namespace {

struct ReportOptions {
  std::vector<std::string> runs;
  std::string out;
};

int report(const ReportOptions& o) {
  const auto sweep = std::ranges::find_if(o.runs, [](const auto& run) { return results_in(run) == Results::sweep; });
  std::string out = o.out.empty() ? "report.html" : o.out;
  if (sweep == o.runs.end()) {
    write_report(o.runs, out);
  } else {
    if (o.runs.size() > 1) throw UsageError(*sweep, "is a sweep, which has a page of its own", "give it alone");
    if (o.out.empty()) out = *sweep + "/report.html";
    sweep::report_sweep(*sweep, out);
  }
  std::cout << "report: " << out << std::endl;
  return 0;
}

const Commands::Entry registered({"report", "one HTML page for one or more runs", [](CommandOptions& command) {
                                    const auto o = std::make_shared<ReportOptions>();
                                    command.texts("runs", o->runs, "run folders, or that of a sweep", command.required);
                                    command.text("--out", o->out,
                                                 "file to write (default report.html, of a sweep in its folder)");
                                    return [o](const CommandLine&) { return report(*o); };
                                  }});

}  // namespace
}  // namespace trireme
