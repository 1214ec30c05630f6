/** @file Trains a small MiLoRA adapter, asks it something it has not seen, and shows which experts it chose. */
import { rmSync } from "node:fs";
import { Adapter, Backbone, Engine, loadRows, renderPrompt, train } from "milora";

const output = "runs/example";
rmSync(output, { recursive: true, force: true });

using backbone = await Backbone.load("assets/tiny-llama");

const run = await train(
  {
    model: "assets/tiny-llama",
    method: "milora",
    adapter: { r: 8, top_k: 3 },
    data: { train: "assets/data/authors/train.jsonl", dev: 0.02 },
    max_steps: 40,
    lr: 3e-3,
    bilevel: false,
    output_dir: output,
  },
  {
    backbone,
    onProgress(event) {
      if (event.type !== "step" || event.metrics.step % 10 !== 0) return;
      console.log(`step ${event.metrics.step}: loss ${event.metrics.lm_loss.toFixed(3)}`);
    },
  },
);

using adapter = Adapter.load(run.bestDirectory!, backbone.config);
using engine = Engine.create(backbone);

const [row] = await loadRows("assets/data/authors/test.jsonl");
const prompt = renderPrompt(row!, backbone.tokenizer, { template: "alpaca" });
const [bare, adapted] = await engine.generate([
  { prompt, options: { maxNewTokens: 16 } },
  { prompt, adapter, options: { maxNewTokens: 16 } },
]);

console.log("bare:   ", bare!.text.trim());
console.log("adapted:", adapted!.text.trim(), `(right: ${row!.answer})`);
console.log("experts by layer:", adapted!.route!.experts.map((layer) => layer.join("+")).join("  "));
