// Runs GGUF files in llama.cpp through node-llama-cpp: a JSON object a line in, one out.
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const {getLlama, LlamaLogLevel} = await import(
    pathToFileURL(`${process.argv[2]}/node_modules/node-llama-cpp/dist/index.js`));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});

async function answer({path, ids, count, texts, length}) {
    const model = await llama.loadModel({modelPath: path, vocabOnly: ids === undefined});
    const found = {
        bos: model.tokens.bos, eos: model.tokens.eos, eot: model.tokens.eot,
        addsBos: model.tokens.shouldPrependBosToken, template: model.fileInfo.metadata.tokenizer?.chat_template,
        texts: (texts ?? []).map(([text, special]) => Array.from(model.tokenize(text, special))),
    };
    if (ids !== undefined) {
        const context = await model.createContext({contextSize: length, threads: 2, flashAttention: false});
        const sequence = context.getSequence();
        found.ids = [];
        const options = {temperature: 0, yieldEogToken: true};
        for await (const item of sequence.evaluateWithMetadata(ids, {probabilities: true}, options)) {
            found.probabilities ??= Array.from(item.probabilities.entries()).slice(0, 4096);
            if (found.ids.push(item.token) >= count) break;
        }
        await context.dispose();
    }
    await model.dispose();
    return found;
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
