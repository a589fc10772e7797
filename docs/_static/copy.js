/* A copy button on every code block. Commands are copied without their "$ ", and without the output below them. */
function textToCopy(text) {
  const lines = text.replace(/\n+$/, "").split("\n");
  const prompt = /^(\$|>>>|\.\.\.) ?/;
  if (!lines.some((line) => prompt.test(line))) return lines.join("\n");
  let continued = false;
  const kept = lines.filter((line) => {
    const isInput = continued || prompt.test(line);
    continued = isInput && line.endsWith("\\");
    return isInput;
  });
  return kept.map((line) => line.replace(prompt, "")).join("\n");
}

function addCopyButtons() {
  for (const block of document.querySelectorAll("div.highlight")) {
    const code = block.querySelector("pre");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.setAttribute("aria-label", "Copy this code");
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(textToCopy(code.textContent));
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
    block.append(button);
  }
}

document.addEventListener("DOMContentLoaded", addCopyButtons);
