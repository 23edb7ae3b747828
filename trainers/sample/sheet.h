// The contact sheet: a row of pictures an arm, a column a prompt, words on top and at the side.
#pragma once
#include "data/image_text/images.h"

#include <string>
#include <vector>

namespace trireme::sample {

struct SheetRow {
  std::string title;            // at the left, lines
  std::vector<Image> pictures;  // of any size; scaled to the sheet's
};

struct Sheet {
  std::string title;
  std::vector<std::string> columns;  // above the pictures, cut to fit
  std::vector<SheetRow> rows;        // at least one picture in all
  int side = 160;                    // pixels of a picture's longer side
};

Image draw_sheet(const Sheet& sheet);

// Capitals, digits and the signs of a sentence, in letters of 3 x 5 dots, each `dot` pixels; others show as a box.
void draw_text(Image& on, int x, int y, const std::string& text, int dot);

}  // namespace trireme::sample
