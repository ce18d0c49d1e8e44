// Codex without its screen, as its users run it on Ollama: `codex exec --oss`.
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { TOOLS, WEATHER, report, run } from "./uses.mjs";

const folder = mkdtempSync(join(tmpdir(), "codex-"));

/** The events of a session, in an empty folder. */
async function session(prompt) {
  const args = [
    ...["exec", "--oss", "--local-provider", "ollama", "--model", TOOLS, "--json", "--skip-git-repo-check"],
    "--dangerously-bypass-approvals-and-sandbox", // not every machine can make a sandbox; the model runs nothing
    ...["-c", "check_for_update_on_startup=false", "-c", "analytics.enabled=false"],
    prompt,
  ];
  const env = { CODEX_HOME: folder, CODEX_OSS_BASE_URL: process.env.OPENAI_BASE_URL };
  const stdout = await run("@openai/codex/bin/codex.js", args, { cwd: folder, env });
  return stdout.trim().split("\n").map((line) => JSON.parse(line));
}

await report("@openai/codex", {
  chat: () => session("Hello!"),
  call: () => session(WEATHER), // of a tool that Codex does not have: it tells the model so
});
