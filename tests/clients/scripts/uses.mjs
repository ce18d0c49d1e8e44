// What the JavaScript scripts here share; see uses.py.
import { execFile } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export const CHAT = process.env.CHAT_MODEL;
export const EMBED = process.env.EMBEDDING_MODEL;
export const TOOLS = process.env.TOOLS_MODEL;

export const SEES = process.env.VISION_MODEL;

export const QUESTION = "What is the capital of France?";
export const WEATHER = "What is the weather in Oslo?";
export const TEXTS = ["A cat sits on the mat.", "A kitten rests on a rug.", "The stock market fell sharply today."];
export const LOOK = "What is this?";
export const [BLACK, WHITE] = ["black", "white"].map((name) => readFileSync(new URL(`${name}.png`, import.meta.url)));
export const ANN = "How old is Ann?";
export const PERSON = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
  required: ["name", "age"],
};

const [LIBRARIES, AGENTS] = ["..", "../agents"].map((folder) => new URL(`${folder}/node_modules/`, import.meta.url));

/** What a program of `agents` printed: it gets no input, two minutes, and `env` beside the environment of this. */
export function run(program, args, { cwd, env }) {
  const options = { cwd, env: { ...process.env, ...env }, timeout: 120_000, maxBuffer: 64 * 1024 * 1024 };
  return new Promise((resolve, reject) => {
    const command = [fileURLToPath(new URL(program, AGENTS)), ...args];
    const child = execFile(process.execPath, command, options, (error, stdout, stderr) =>
      error ? reject(new Error(`${error.message}\n${stdout}\n${stderr}`)) : resolve(stdout),
    );
    child.stdin.end();
  });
}

/** All that an asynchronous iterator yields. */
export async function all(iterable) {
  const items = [];
  for await (const item of await iterable) items.push(item);
  return items;
}

/** What an act that has to fail threw. */
export async function thrown(act) {
  try {
    return { type: null, text: `nothing was thrown: ${JSON.stringify(await act())}`, status: null };
  } catch (error) {
    return { type: error.name, text: error.message, status: error.status_code ?? error.status ?? null };
  }
}

/** Run all uses and print what they got, by their names, and the version of the package. */
export async function report(packageName, uses) {
  const got = { versions: { [packageName]: version(packageName) } };
  for (const [name, use] of Object.entries(uses)) {
    try {
      got[name] = await use();
    } catch (error) {
      got[name] = { traceback: error.stack };
    }
  }
  process.stdout.write(JSON.stringify(got) + "\n");
}

function version(packageName) {
  const [path] = [LIBRARIES, AGENTS].map((url) => new URL(`${packageName}/package.json`, url)).filter(existsSync);
  return JSON.parse(readFileSync(path)).version;
}
