// Times llama.cpp through node-llama-cpp for benchmarks/small_weights.py: a JSON object a line in, one out.
// {"open": NAME, "path": FILE, "length": S, "threads": N}, then {"run": NAME, "ids": [...], "count": N}.
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const {getLlama, LlamaLogLevel} = await import(
    pathToFileURL(`${process.argv[2]}/node_modules/node-llama-cpp/dist/index.js`));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});
const sequences = {};

async function answer({open, path, length, threads, run, ids, count}) {
    if (open) {
        const model = await llama.loadModel({modelPath: path});
        const context = await model.createContext({contextSize: length, threads, flashAttention: false});
        sequences[open] = context.getSequence();
        return {};
    }
    const sequence = sequences[run];
    await sequence.clearHistory();
    const start = performance.now();
    let first, made = 0;
    for await (const _ of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
        first ??= performance.now();
        if (++made >= count) break;
    }
    return {made, prefill: (first - start) / 1e3, decode: (performance.now() - first) / 1e3};
}

for await (const line of createInterface({input: process.stdin})) {
    let reply;
    try {
        reply = await answer(JSON.parse(line));
    } catch (error) {
        reply = {error: String(error)};
    }
    process.stdout.write(JSON.stringify(reply) + "\n");
}
process.exit(0);
