// The frame of the report: style sheet and the HTML pieces around the charts.
#pragma once
#include "framework/report/run.h"

#include <string>

namespace trireme {

std::string page_begin(const std::string& title);
std::string page_end();
std::string figure(const std::string& size, const std::string& title, const std::string& unit, const std::string& body);
std::string html_table(const KeyValues& rows, const std::string& key_head, const std::string& value_head);
std::string details(const std::string& title, const std::string& body);

}  // namespace trireme
