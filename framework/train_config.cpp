#include "framework/train_config.h"

namespace trireme {

void CheckpointConfig::fields(Fields& f) {
  f.resume_may_change(true);
  f("every", every, "steps between checkpoints; 0 = at the end only", {.min = 0});
  f("keep", keep, "newest checkpoints kept", {.min = 1});
  f("best", best, "also keep the one with the best evaluation");
  f("async", async, "write in the background while training goes on");
}

void TrainConfig::fields(Fields& f) {
  f("recipe", recipe, "which recipe trains");
  f("seed", seed, "key of all randomness", {.min = 0});
  f("steps", steps, "optimizer steps in all", {.min = 1});
  f("epochs", epochs, "passes over the training data; more than 0: they count, and steps does not", {.min = 0});
  f("batch_size", batch_size, "samples of one optimizer step, over all ranks", {.min = 1});
  f("accumulate", accumulate, "micro-batches a step is computed in", {.min = 1});
  f.choice("device", device, {"auto", "cpu", "cuda"}, "where a rank computes; auto: on a GPU if every rank has one");
  f.choice("communicator", communicator, {"auto", "mpi", "nccl"},
           "what GPU memory travels over; auto: nccl if every rank has a GPU of its own");
  f.choice("precision", precision, {"f32", "f64", "bf16", "fp16"}, "compute type; bf16 and fp16 keep f32 masters");
  f.group("optimizer", optimizer, "optimizer and learning rate");
  f("init_from", init_from, "run folder, OpenCLIP folder or safetensors file whose weights are loaded at step 0");
  f("freeze", freeze, "parameters not trained; patterns with *");
  f("ema", ema, "decay of the running average of the weights used in evaluation; 0 = off", {.min = 0, .max = 1});
  f.choice("nonfinite", nonfinite, {"stop", "skip"}, "a non-finite loss or gradient: stop (exit 5), or skip the step");
  f("bucket_mib", bucket_mib, "size of a gradient bucket", {.min = 0.001, .max = 4096});
  f("first_bucket_mib", first_bucket_mib, "size of the first bucket, so that it leaves early",
    {.min = 0.001, .max = 4096});
  f("overlap", overlap, "reduce gradients while backward still runs");
  f.group("hook", hook, "compression of gradients on their way");
  f("zero", zero, "ZeRO stage: 1 = each rank keeps the optimizer state of, and updates, its share of the weights",
    {.min = 0, .max = 1});
  f("prefetch", prefetch, "read the next batch on another thread");
  f("checked", checked, "compare every collective over all ranks before it runs (slow, for debugging)");
  f.resume_may_change(true);
  f("threads", threads, "threads of a rank; 0 = cores / local ranks, beside a GPU 1", {.min = 0, .max = 1024});
  f.group("checkpoint", checkpoint, "when and what is saved");
  f.group("watchdog", watchdog, "a job that hangs ends with exit code 4 and a line that says where");
  f("log_every", log_every, "steps between metric lines", {.min = 1});
  f("eval_every", eval_every, "steps between evaluations; 0 = at the end only", {.min = 0});
  f("peak_tflops", peak_tflops,
    "dense TFLOP/s of a rank's device that mfu is measured against; 0 = by its data sheet, none for a CPU", {.min = 0});
  f.choice(
      "graph", graph, {"auto", "on", "off"},
      "auto: on one GPU, steps of equal shapes are recorded as a CUDA graph and replayed where the recipe allows it; "
      "on: also those of several ranks over NCCL, with their collectives");
  f("trace", trace, "write trace.json (Chrome trace)");
  f.resume_may_change(false);
  f.require(batch_size % accumulate == 0, "accumulate", "does not divide batch_size", "choose a divisor of it");
  f.require(hook.name == "none" || precision != "f64", "hook.name", "compresses f32 gradients, and precision is f64",
            "use hook.name=none or precision=f32");
  f.require(zero == 0 || optimizer.name != "lamb", "optimizer.name",
            "lamb needs the norms of whole weights, which zero: 1 cuts over ranks",
            "use zero=0 or optimizer.name=adamw");
  f.require(optimizer.min_lr <= optimizer.lr, "optimizer.min_lr", "is above optimizer.lr", "lower it");
}

}  // namespace trireme
