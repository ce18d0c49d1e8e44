// Ollama's own JavaScript client.
import { Ollama } from "ollama";
import {
  ANN,
  BLACK,
  CHAT,
  EMBED,
  LOOK,
  PERSON,
  QUESTION,
  SEES,
  TEXTS,
  TOOLS,
  WEATHER,
  WHITE,
  all,
  report,
  thrown,
} from "./uses.mjs";

const ollama = new Ollama({ host: process.env.OLLAMA_HOST });
const messages = [{ role: "user", content: QUESTION }];
const options = { temperature: 0, num_predict: 32 };
const tools = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "Get the weather in a city",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];
const askWeather = { model: TOOLS, messages: [{ role: "user", content: WEATHER }], tools, options: { temperature: 0 } };

await report("ollama", {
  list: () => ollama.list(),
  show: () => ollama.show({ model: CHAT }),
  version: () => ollama.version(),
  chat: () => ollama.chat({ model: CHAT, messages, options }),
  chat_stream: () => all(ollama.chat({ model: CHAT, messages, options, stream: true })),
  generate: () => ollama.generate({ model: CHAT, prompt: QUESTION, options }),
  generate_stream: () => all(ollama.generate({ model: CHAT, prompt: QUESTION, options, stream: true })),
  ps: () => ollama.ps(),
  structured: async () => {
    const reply = await ollama.chat({
      model: TOOLS,
      messages: [{ role: "user", content: ANN }],
      format: PERSON,
      options: { temperature: 0 },
    });
    return JSON.parse(reply.message.content);
  },
  tools: () => ollama.chat(askWeather),
  tools_stream: () => all(ollama.chat({ ...askWeather, stream: true })),
  tool_loop: async () => {
    const { message } = await ollama.chat(askWeather);
    const result = { role: "tool", tool_name: message.tool_calls[0].function.name, content: "7 degrees and sunny" };
    return ollama.chat({ ...askWeather, messages: [...askWeather.messages, message, result] });
  },
  thinking: () =>
    all(
      ollama.chat({
        model: TOOLS,
        messages: [{ role: "user", content: "Why is the sky blue?" }],
        think: true,
        stream: true,
        options: { temperature: 0 },
      }),
    ),
  images: async () => {
    const look = async (image) => {
      const question = { role: "user", content: LOOK, images: [new Uint8Array(image)] };
      const reply = await ollama.chat({ model: SEES, messages: [question], options: { temperature: 0, num_predict: 6 } });
      return reply.message.content;
    };
    return [await look(BLACK), await look(WHITE)];
  },
  embed: () => ollama.embed({ model: EMBED, input: TEXTS }),
  embeddings: () => ollama.embeddings({ model: EMBED, prompt: TEXTS[0] }),
  embedWithAChatModel: () => ollama.embed({ model: CHAT, input: TEXTS[0] }),
  abort: async () => {
    const stream = await ollama.chat({ model: CHAT, messages, options, stream: true });
    let pieces = 0;
    const raised = await thrown(async () => {
      for await (const _ of stream) if (++pieces === 3) ollama.abort();
    });
    const after = await ollama.chat({ model: CHAT, messages, options });
    return { pieces, raised, after: after.message.content };
  },
  pull: () => all(ollama.pull({ model: CHAT, stream: true })),
  copy_and_delete: async () => {
    const names = async () => (await ollama.list()).models.map((model) => model.name);
    const copied = await ollama.copy({ source: CHAT, destination: "a-copy-by-node" });
    const withCopy = await names();
    const deleted = await ollama.delete({ model: "a-copy-by-node" });
    return [copied.status, withCopy, deleted.status, await names()];
  },
  errors: async () => ({
    "unknown model": await thrown(() => ollama.chat({ model: "nosuchmodel", messages })),
    "unknown model, streamed": await thrown(() => all(ollama.chat({ model: "nosuchmodel", messages, stream: true }))),
    "show of an unknown model": await thrown(() => ollama.show({ model: "nosuchmodel" })),
    "pull of an unknown model": await thrown(() => all(ollama.pull({ model: "nosuchmodel", stream: true }))),
    "delete of an unknown model": await thrown(() => ollama.delete({ model: "nosuchmodel" })),
    "tools without support": await thrown(() => ollama.chat({ ...askWeather, model: CHAT })),
  }),
});
