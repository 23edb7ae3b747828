#include "data/tables/shapes.h"

#include <algorithm>
#include <cmath>

namespace trireme {
namespace {

// Rows and classes: the SC'24 artifact. Exponents: fitted to its published ratios of vector-LZ. Heads: counted in
// dumps.
const Shape kaggle{
    "kaggle",
    13,
    32,
    {512, 256, 64},
    {512, 256},
    "LHLLLLHLLLHLHLHLLHLLLLLLLL",
    {{1460, 1.80, 'B'},    {583, 1.01, 'B'},   {10131227, 1.21, 'T'},
     {2202608, 1.09, 'T'}, {305, 2.27, 'B'},   {24, 2.35, 'B', {0.39, 0.24, 0.20, 0.07, 0.05, 0.02, 0.02}, 2.35, 0},
     {12517, 0.75, 'B'},   {633, 2.06, 'B'},   {3, 0, 'L', {0.93, 0.07}, 1, 0},
     {93145, 1.08, 'T'},   {5683, 0.79, 'B'},  {8351593, 1.22, 'T'},
     {3194, 0.80, 'B'},    {27, 2.06, 'B'},    {14992, 0.82, 'B'},
     {5461306, 1.15, 'T'}, {10, 1.31, 'L'},    {5652, 0.91, 'B'},
     {2173, 1.78, 'B'},    {4, 0, 'L'},        {7046547, 1.22, 'T'},
     {18, 3.18, 'L'},      {15, 1.92, 'L'},    {286181, 1.09, 'T'},
     {105, 1.85, 'L'},     {142572, 1.31, 'T'}}};

const Shape terabyte{"terabyte",
                     13,
                     64,
                     {512, 256},
                     {512, 512, 256},
                     "LHHLLLHLLLLHLLHLLLLLLLLHLL",
                     {{9980333, 1.41, 'T'},
                      {36084, 0.93, 'B', {0.045, 0.042, 0.015, 0.011, 0.010, 0.010}, 1.2, 10},
                      {17217, 0.74, 'B'},
                      {7378, 1.39, 'B'},
                      {20134, 1.24, 'B'},
                      {3, 0, 'L', {0.88, 0.12}, 1, 0},
                      {7112, 0.75, 'B'},
                      {1442, 1.04, 'B'},
                      {61, 2.22, 'L', {0.47, 0.12, 0.10, 0.07, 0.07, 0.06, 0.04, 0.04}, 5.3, 0},
                      {9758201, 1.31, 'T'},
                      {1333352, 1.21, 'T'},
                      {313829, 1.12, 'B'},
                      {10, 2.18, 'L'},
                      {2208, 1.77, 'B'},
                      {11156, 0.97, 'B'},
                      {122, 2.00, 'L'},
                      {4, 4.71, 'L'},
                      {970, 1.83, 'L'},
                      {14, 1.88, 'L'},
                      {9994222, 1.40, 'T'},
                      {7267859, 1.23, 'T'},
                      {9946608, 1.34, 'T'},
                      {415421, 1.39, 'T'},
                      {12420, 0.77, 'B'},
                      {101, 2.23, 'L'},
                      {36, 1.92, 'L'}}};

// The exponents are those of the smaller cap.
const Shape mlperf_v1{
    "mlperf_v1",
    13,
    128,
    {512, 256},
    {1024, 1024, 512, 256},
    "",
    {{40000000, 1.41, 0}, {39060, 0.93, 0},    {17295, 0.74, 0},  {7424, 1.39, 0},  {20265, 1.24, 0},
     {3, 0, 0},           {7122, 0.75, 0},     {1543, 1.04, 0},   {63, 2.22, 0},    {40000000, 1.31, 0},
     {3067956, 1.21, 0},  {405282, 1.12, 0},   {10, 2.18, 0},     {2209, 1.77, 0},  {11938, 0.97, 0},
     {155, 2.00, 0},      {4, 4.71, 0},        {976, 1.83, 0},    {14, 1.88, 0},    {40000000, 1.40, 0},
     {40000000, 1.23, 0}, {40000000, 1.34, 0}, {590152, 1.39, 0}, {12973, 0.77, 0}, {108, 2.23, 0},
     {36, 1.92, 0}}};

Shape multi_hot(Shape shape) {
  constexpr std::int64_t widths[] = {3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1};
  shape.name = "mlperf_v2";
  for (std::size_t t = 0; t < shape.tables.size(); ++t) shape.tables[t].width = widths[t];
  return shape;
}
const Shape mlperf_v2 = multi_hot(mlperf_v1);

}  // namespace

const Shape* shape_named(std::string_view name) {
  for (const Shape* s : {&kaggle, &terabyte, &mlperf_v1, &mlperf_v2})
    if (s->name == name) return s;
  return nullptr;
}

std::int64_t scaled_rows(std::int64_t rows, double scale) {
  constexpr std::int64_t kept = 1000;
  if (rows <= kept) return rows;
  return kept + std::int64_t(std::ceil(double(rows - kept) / std::max(scale, 1.0)));
}

}  // namespace trireme
