// links: comm
// The script of `trireme submit`, run by bash with an srun and a scontrol that write down what they were given. No
// Slurm is needed; tests/slurm runs it on a real one.
#include "tests/fault/program.h"

namespace trireme::test {
namespace {

class Submit : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(dir() / "bin");
    tool("srun",
         "[ \"$1\" = --mpi=list ] && { echo pmix; exit; }\nprintf '%s\\0' \"$@\" >ran\n"
         "exit ${CODE:-0}\n");
    tool("scontrol", "echo \"$@\" >requeued\n");
    write_text(dir() / "e.yaml", "recipe: mlp\nsteps: 10\nbatch_size: 8\n");
  }

  fs::path dir() const { return folder_.path; }
  void tool(const std::string& name, const std::string& body) {
    write_text(dir() / "bin" / name, "#!/bin/bash\n" + body);
    fs::permissions(dir() / "bin" / name, fs::perms::owner_all);
  }

  Outcome submit(Words words, const Words& environment = {}) {
    words.insert(words.begin(), "submit");
    return run_program(words, {dir(), environment});
  }
  std::string script(Words words) {
    words.push_back("--print");
    const Outcome o = submit(words);
    EXPECT_EQ(o.code, 0) << o;
    EXPECT_EQ(o.err, "");
    return o.out;
  }

  // Runs the script as Slurm does and returns its exit code; `words()` are what srun was then given.
  int run(const std::string& text, const std::string& environment = "") {
    write_text(dir() / "job.sh", text);
    for (const char* file : {"ran", "requeued"}) fs::remove(dir() / file);
    const std::string command = "cd / && PATH=" + dir().string() + "/bin:$PATH SLURM_JOB_ID=7 " + environment +
                                " bash " + dir().string() + "/job.sh >" + dir().string() + "/said 2>&1";
    const int status = std::system(command.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  Words words() const {
    std::istringstream in(read_text(dir() / "ran"));
    Words found;
    for (std::string word; std::getline(in, word, '\0');) found.push_back(word);
    return found;
  }

  TempFolder folder_;
};

TEST_F(Submit, EveryValueArrivesAsItWas) {
  const std::string evil = "a b'c\"d$(touch pwned)`touch pwned`;touch pwned\\#%j*é!~";
  fs::create_directories(dir() / evil);
  fs::copy_file(dir() / "e.yaml", dir() / evil / "e.yaml");
  const std::string text =
      script({evil + "/e.yaml", "init_from='" + evil.substr(0, 3) + "$(touch pwned)'", "--out", evil + "/run/",
              "--nodes", "2", "--ranks-per-node", "4", "--time", "1-0", "--partition", "$(touch pwned)"});
  EXPECT_EQ(run(text), 0) << read_text(dir() / "said");
  EXPECT_EQ(words(), (Words{"--mpi=pmix", program_path(), "train", evil + "/e.yaml", "init_from='a b$(touch pwned)'",
                            "--out", evil + "/run"}));
  for (const auto& entry : fs::recursive_directory_iterator(dir())) EXPECT_NE(entry.path().filename(), "pwned");
  EXPECT_NE(text.find("\n#SBATCH --nodes=\"2\"\n"), std::string::npos) << text;
  EXPECT_NE(text.find("\n#SBATCH --ntasks-per-node=\"4\"\n"), std::string::npos) << text;
  EXPECT_NE(text.find("\n#SBATCH --time=\"1-0\"\n"), std::string::npos) << text;
  EXPECT_EQ(text.find("#SBATCH --nodes=1"), std::string::npos) << text;
}

TEST_F(Submit, NewlinesAreRefused) {
  const std::vector<Words> cases{{"e.yaml", "init_from='a\nb'"},
                                 {"e.yaml", "--out", "a\nb"},
                                 {"e.yaml", "--partition", "p\n#SBATCH x"},
                                 {"e.yaml", "--time", "1\r"},
                                 {"e.yaml", "--", "--account=a\nb"}};
  for (auto words : cases) {
    const auto at = std::find(words.begin(), words.end(), "--");
    words.insert(at, "--print");
    const Outcome o = submit(words);
    EXPECT_EQ(o.code, 2) << o;
    EXPECT_EQ(o.out, "") << o;
    EXPECT_EQ(lines_of(o.err).size(), 1u) << o;
    EXPECT_NE(o.err.find("newline"), std::string::npos) << o;
  }
}

TEST_F(Submit, TimesAreThoseOfSlurm) {
  for (const std::string time : {"30", "30:00", "1:30:00", "1-12", "2-00:30:00", "UNLIMITED"})
    EXPECT_EQ(submit({"e.yaml", "--time", time, "--print"}).code, 0) << time;
  for (const std::string time : {"abc", "1h", "-5", "1-", "1:2:3:4", "30 "}) {
    const Outcome o = submit({"e.yaml", "--time", time, "--print"});
    EXPECT_EQ(o.code, 2) << o;
    EXPECT_EQ(o.out, "") << o;
    EXPECT_NE(o.err.find("days-hours:minutes:seconds"), std::string::npos) << o;
  }
}

TEST_F(Submit, ListsBecomeAnArray) {
  const std::string text = script({"e.yaml", "seed=1,2", "sizes=[64,10],[64,8,10]", "steps=5"});
  EXPECT_NE(text.find("\n#SBATCH --array=\"0-3\"\n"), std::string::npos) << text;
  EXPECT_NE(text.find("/runs/e.slurm-%A_%a.out\"\n"), std::string::npos) << text;
  const std::vector<Words> expected{{"seed=1", "sizes=[64,10]"},
                                    {"seed=1", "sizes=[64,8,10]"},
                                    {"seed=2", "sizes=[64,10]"},
                                    {"seed=2", "sizes=[64,8,10]"}};
  for (int k = 0; k < 4; ++k) {
    EXPECT_EQ(run(text, "SLURM_ARRAY_TASK_ID=" + std::to_string(k)), 0);
    EXPECT_EQ(words(), (Words{"--mpi=pmix", program_path(), "train", "e.yaml", expected[k][0], expected[k][1],
                              "steps=5", "--out", "runs/e." + std::to_string(k)}));
  }
  EXPECT_EQ(run(text, "SLURM_ARRAY_TASK_ID=4"), 2);
  EXPECT_TRUE(words().empty());
}

TEST_F(Submit, OptionsOfSbatchGoAfterTheDashes) {
  const Outcome o = submit({"e.yaml", "--print", "--", "--account=a b", "-x", "--output=mine"});
  ASSERT_EQ(o.code, 0) << o;
  EXPECT_NE(o.out.find("\n#SBATCH \"--account=a b\"\n#SBATCH \"-x\"\n#SBATCH \"--output=mine\"\n"), std::string::npos)
      << o;
  EXPECT_EQ(submit({"e.yaml", "--print", "--", "steps=5"}).code, 2);
}

TEST_F(Submit, MistakesAreToldBeforeAnythingIsSubmitted) {
  const std::vector<std::pair<Words, std::string>> cases{
      {{"e.yaml", "stepz=3"}, "did you mean"},
      {{"e.yaml", "steps=3,0"}, "steps"},
      {{"e.yaml", "steps=3,,4"}, "empty"},
      {{"e.yaml", "--nodes", "3"}, "not divisible by 3 ranks"},
      {{"e.yaml", "seed=" + std::string(20002, '1').replace(1, 1, ",") + "x"}, ""},
      {{"none.yaml"}, "none.yaml"}};
  for (const auto& [words, what] : cases) {
    const Outcome o = submit(words);
    EXPECT_NE(o.code, 0) << o;
    EXPECT_NE(o.code, 1) << o;
    EXPECT_EQ(lines_of(o.err).size(), 1u) << o;
    EXPECT_NE(o.err.find(what), std::string::npos) << o;
    EXPECT_FALSE(fs::exists(dir() / "runs"));
  }
}

TEST_F(Submit, WithoutSbatch) {
  const Outcome o = submit({"e.yaml"}, {"PATH=" + (dir() / "nothing").string()});
  EXPECT_EQ(o.code, 2) << o;
  EXPECT_EQ(lines_of(o.err).size(), 1u) << o;
  EXPECT_NE(o.err.find("slurm-client"), std::string::npos) << o;
}

TEST_F(Submit, OnlyCode85IsQueuedAgain) {
  const std::string text = script({"e.yaml", "--requeues", "3"});
  EXPECT_EQ(run(text, "CODE=85"), 85);
  EXPECT_EQ(read_text(dir() / "requeued"), "requeue 7\n");
  EXPECT_EQ(run(text, "CODE=85 SLURM_RESTART_COUNT=2"), 85);
  EXPECT_TRUE(fs::exists(dir() / "requeued"));
  EXPECT_EQ(run(text, "CODE=85 SLURM_RESTART_COUNT=3"), 85);
  EXPECT_FALSE(fs::exists(dir() / "requeued"));
  for (const int code : {0, 1, 4, 130}) {
    EXPECT_EQ(run(text, "CODE=" + std::to_string(code)), code);
    EXPECT_FALSE(fs::exists(dir() / "requeued"));
  }
}

// The same file submitted by hand.
TEST_F(Submit, TheTemplateTakesItsArguments) {
  const std::string text = read_text(std::string(std::getenv("TRIREME_SOURCE")) + "/slurm/launch.sbatch");
  write_text(dir() / "job.sh", text);
  const std::string command =
      "cd " + dir().string() + " && PATH=bin:$PATH SLURM_CPUS_PER_TASK=3 bash job.sh e.yaml 'a=b c' >/dev/null";
  EXPECT_EQ(std::system(command.c_str()), 0);
  EXPECT_EQ(words(), (Words{"--mpi=pmix", "--cpus-per-task=3", "trireme", "train", "e.yaml", "a=b c"}));
}

}  // namespace
}  // namespace trireme::test
