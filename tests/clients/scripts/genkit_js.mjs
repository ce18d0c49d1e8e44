// Genkit with its Ollama plugin, which parses each chunk that the network hands it as one record.
import { genkit, z } from "genkit";
import { ollama } from "genkitx-ollama";
import { CHAT, EMBED, QUESTION, TEXTS, TOOLS, WEATHER, all, report, thrown } from "./uses.mjs";

const ai = genkit({
  plugins: [
    ollama({
      serverAddress: process.env.OLLAMA_HOST,
      models: [
        { name: CHAT },
        { name: TOOLS, supports: { tools: true } },
        { name: "nosuchmodel" },
      ],
      embedders: [{ name: EMBED, dimensions: 384 }],
    }),
  ],
});
const config = { temperature: 0, maxOutputTokens: 100 };
const getWeather = ai.defineTool(
  {
    name: "get_weather",
    description: "Get the weather in a city",
    inputSchema: z.object({ city: z.string() }),
    outputSchema: z.string(),
  },
  async () => "7 degrees and sunny",
);
const streamed = async (request) => {
  const { stream, response } = ai.generateStream({ config, ...request });
  const pieces = (await all(stream)).map((chunk) => chunk.text);
  return { pieces, text: (await response).text };
};

await report("genkitx-ollama", {
  chat: async () => (await ai.generate({ model: `ollama/${CHAT}`, prompt: QUESTION, config })).text,
  stream: () => undisturbed(() => streamed({ model: `ollama/${CHAT}`, prompt: QUESTION })),
  tools: async () => {
    const reply = await ai.generate({ model: `ollama/${TOOLS}`, prompt: WEATHER, tools: [getWeather], config, returnToolRequests: true });
    return reply.toolRequests.map(({ toolRequest }) => [toolRequest.name, toolRequest.input]);
  },
  tool_loop: async () => (await ai.generate({ model: `ollama/${TOOLS}`, prompt: WEATHER, tools: [getWeather], config })).text,
  tools_stream: () => undisturbed(async () => {
    const { stream, response } = ai.generateStream({ model: `ollama/${TOOLS}`, prompt: WEATHER, tools: [getWeather], config });
    const chunks = await all(stream);
    await response;
    return chunks.flatMap((chunk) => chunk.toolRequests).map(({ toolRequest }) => [toolRequest.name, toolRequest.input]);
  }),
  embed: async () => {
    const vectors = await Promise.all(TEXTS.map((content) => ai.embed({ embedder: `ollama/${EMBED}`, content })));
    return vectors.map(([{ embedding }]) => embedding);
  },
  errors: async () => ({
    "unknown model": await thrown(() => ai.generate({ model: "ollama/nosuchmodel", prompt: QUESTION, config })),
  }),
});

/**
 * What an act gave at the first time that it was not told two records at once.
 *
 * The server sends each record as a chunk of its own, but Node.js joins what came before the client looked, and this
 * client parses that as one record: on a busy machine it breaks with any server.
 */
async function undisturbed(act) {
  for (let tries = 1; ; tries++) {
    try {
      return await act();
    } catch (error) {
      if (!(error instanceof SyntaxError) || tries === 200) throw error;
    }
  }
}
