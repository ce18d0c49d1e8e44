// Claude Code without its screen: `claude -p`.
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { TOOLS, WEATHER, report, run } from "./uses.mjs";

const folder = mkdtempSync(join(tmpdir(), "claude-code-"));

/** The events of a session, in an empty folder. */
async function session(prompt, ...options) {
  const args = ["-p", prompt, "--model", TOOLS, "--output-format", "stream-json", "--verbose", ...options];
  const env = {
    CLAUDE_CONFIG_DIR: folder,
    CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1",
    CLAUDE_CODE_MAX_RETRIES: "0",
    DISABLE_AUTOUPDATER: "1",
    DISABLE_TELEMETRY: "1",
  };
  const stdout = await run("@anthropic-ai/claude-code/cli-wrapper.cjs", args, { cwd: folder, env });
  return stdout.trim().split("\n").map((line) => JSON.parse(line));
}

await report("@anthropic-ai/claude-code", {
  chat: () => session("Hello!", "--tools", "Bash"),
  stream: () => session("Hello!", "--tools", "Bash", "--include-partial-messages"),
  call: () => session(WEATHER, "--tools", "Bash"), // of a tool that Claude Code does not have: it tells the model so
  // All tools: some 18,000 tokens, and a system message after the user's.
  whole_prompt: () => session("Hello!"),
});
