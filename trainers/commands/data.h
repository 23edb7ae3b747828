// `trireme data NAME`: prepares a data set: image-text pairs as one HDF5 file or as tars, a model's features of them,
// samples with tables, or text.
#pragma once
#include <string>
#include <vector>

namespace trireme {

struct DataOptions {
  std::string name;    // openclipart, emoji, folder, tars, tar, scenes or cache-reference
  std::string out;     // empty: in the cache, one file for each name, size and source
  std::string from;    // source folder, table or tars; required by `folder`, `tars` and `tar`, else the packages' place
  int size = 64;       // pixels of the square
  int threads = 0;     // decoders; 0: one a core
  bool force = false;  // prepare again although the file is there
  // Of scenes: pairs to train on and beside them, seed, h5 or tar.
  int pairs = 100000, held_out = 5000, seed = 1;
  std::string format = "h5";
  // Of cache-reference, which has --out and --threads as well.
  std::string model, data;   // MODEL; data, an experiment or a run
  std::string type = "f16";  // of the features: f16 or f32
  std::string device = "auto";
  std::string tokenizer;  // CLIP merges file, where the model brings none
  int batch = 64;         // pairs at a time
  // Of samples with tables.
  std::vector<std::string> files;    // criteo: days
  std::string label, dense, sparse;  // table: a column, and lists of columns with commas between them
  std::string test = "0.1", broken = "0.001", drop_negatives = "0";  // shares
  std::string shape = "kaggle";                                      // criteo_like
  int level = 1, problems = 2000;                                    // of arithmetic
  int max_ind_range = 0, scale = 1, samples = 1000000, test_samples = 100000;
};

// `trireme data criteo|criteo_like|table|flights`: samples with tables as one HDF5 file. As data_command().
bool is_table_data(const std::string& name);
int table_data(const DataOptions& options);

// `trireme data wordnet|gcide|arithmetic`: text, a document a paragraph, or problems as JSON lines. As data_command().
bool is_text_data(const std::string& name);
int text_data(const DataOptions& options);

// `trireme data cache-reference MODEL DATA`: both features of every pair as one file (reference_features.h). As
// data_command().
int cache_reference(const DataOptions& options);

// Summary on stdout, progress on stderr; returns 0. A sound file that is already there is kept (unless `force`); one
// that is damaged, or was prepared from another place, is made anew in the cache and refused as `out`. Throws
// UsageError, DataError.
int data_command(const DataOptions& options);

}  // namespace trireme
