#include "framework/report/page.h"

#include "framework/report/chart.h"

#include <ctime>

namespace trireme {
namespace {

constexpr const char* style = R"css(
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #17202b; --soft: #5a6675; --muted: #8b95a3; --rule: #e4e8ed; --grid: #edf0f4;
  --c0: #2563eb; --c1: #d9640f; --c2: #0d8f7f; --c3: #8b3fd6; --c4: #c92a52; --c5: #6a7f10; --c6: #0b84b3; --c7: #a35d1e;
  --p0: #9aa7b8; --p1: #4f8df5; --p2: #2450b8; --p3: #f08c3a; --p4: #2aa893; --p5: #d3d9e1; }
@media (prefers-color-scheme: dark) { :root {
  --page: #10141a; --card: #181e26; --ink: #e6ebf1; --soft: #a2adba; --muted: #74808e; --rule: #2a323d; --grid: #232b35;
  --c0: #6ea2ff; --c1: #ff9d52; --c2: #3fc7b3; --c3: #bd8cff; --c4: #ff7492; --c5: #b4c94a; --c6: #55bfe8; --c7: #d99a5b;
  --p0: #7d8a9a; --p1: #6ea2ff; --p2: #3a66d0; --p3: #f39a50; --p4: #3fbfa9; --p5: #3b4653; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 36px 24px 48px; }
h1 { font-size: 27px; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 15px; margin: 34px 0 12px; letter-spacing: .01em; }
.sub { color: var(--soft); margin: 0 0 4px; overflow-wrap: anywhere; }
.sub b { color: var(--ink); font-weight: 600; }
.sub span + span::before { content: "·"; margin: 0 8px; color: var(--muted); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(205px, 1fr)); gap: 12px; margin: 24px 0 12px; }
.cards div { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 12px 16px; }
.cards small { display: block; color: var(--soft); font-size: 12.5px; }
.cards strong { display: block; font-size: 24px; font-weight: 620; letter-spacing: -.01em; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(6, 1fr); gap: 12px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px 10px;
  min-width: 0; }
figure.full { grid-column: span 6; } figure.half { grid-column: span 3; } figure.third { grid-column: span 2; }
figcaption { font-weight: 600; font-size: 14px; margin-bottom: 6px; }
figcaption span { color: var(--muted); font-weight: 400; margin-left: 8px; font-size: 12.5px; }
@media (max-width: 760px) { figure.half, figure.third { grid-column: span 6; } }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
.tick { fill: var(--muted); } .label { fill: var(--ink); font-weight: 600; } .inside { fill: #fff; font-weight: 600; }
svg .grid { stroke: var(--grid); fill: none; display: inline; } .axis { stroke: var(--muted); fill: none; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.faint { fill: none; stroke-width: 1; opacity: .32; stroke-linejoin: round; }
.dashed { fill: none; stroke-width: 1.5; stroke-dasharray: 5 4; } .area { stroke: var(--card); stroke-width: .6; }
.chance { stroke: var(--ink); stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0 4px; color: var(--soft); font-size: 13px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 7px; }
.legend i.mark { width: 2px; height: 14px; border-radius: 0; background: var(--ink); vertical-align: -2px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--rule); vertical-align: top;
  overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; overflow-wrap: normal; }
tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; } th.number { white-space: normal; vertical-align: bottom; }
td i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 8px; }
td:first-child { color: var(--soft); } .compare td:first-child { color: var(--ink); font-weight: 600; white-space: nowrap; }
.compare th { vertical-align: bottom; }
details { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 10px 16px; margin-top: 12px; }
summary { cursor: pointer; font-weight: 600; font-size: 14px; }
details table { margin: 8px 0 4px; } details td:first-child { width: 34%; font-family: ui-monospace, Menlo, Consolas, monospace;
  font-size: 12.5px; } details td + td { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 12.5px; }
.notes { color: var(--soft); font-size: 13.5px; border-left: 3px solid var(--c1); padding: 2px 0 2px 12px; margin: 16px 0 0; }
footer { color: var(--muted); font-size: 12.5px; margin-top: 28px; }
@media print { body { background: #fff; } figure, .cards div, details { break-inside: avoid; } }
)css";

}  // namespace

std::string page_begin(const std::string& title) {
  return "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
         "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
         "'unsafe-inline'\">"
         "<title>" +
         escape_html(title) + "</title><style>" + style + "</style></head><body><main>\n";
}

std::string page_end() {
  char date[64] = "";
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  if (gmtime_r(&now, &parts)) std::strftime(date, sizeof date, "%Y-%m-%d %H:%M UTC", &parts);
  return std::string("<footer>Written by Trireme ") + TRIREME_VERSION + " on " + date +
         "</footer>\n</main></body></html>\n";
}

std::string figure(const std::string& size, const std::string& title, const std::string& unit,
                   const std::string& body) {
  return "<figure class=\"" + size + "\"><figcaption>" + escape_html(title) +
         (unit.empty() ? "" : "<span>" + escape_html(unit) + "</span>") + "</figcaption>" + body + "</figure>\n";
}

std::string html_table(const KeyValues& rows, const std::string& key_head, const std::string& value_head) {
  std::string s = "<table><tr><th>" + escape_html(key_head) + "</th><th>" + escape_html(value_head) + "</th></tr>";
  for (const auto& [key, value] : rows)
    s += "<tr><td>" + escape_html(key) + "</td><td>" + escape_html(value) + "</td></tr>";
  return s + "</table>";
}

std::string details(const std::string& title, const std::string& body) {
  return "<details><summary>" + escape_html(title) + "</summary>" + body + "</details>\n";
}

}  // namespace trireme
