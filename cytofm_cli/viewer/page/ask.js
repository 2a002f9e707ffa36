// Asking the server. Every address is relative to the page's, which begins with the token.

const status = document.getElementById("status");

export function say(text, isError = false) {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

async function answerOf(response) {
  const answer = await response.json().catch(() => ({ error: `no answer (${response.status})` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

export async function ask(path) {
  return answerOf(await fetch(path));
}

export async function tell(path, body) {
  const headers = { "content-type": "application/json" };
  return answerOf(await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }));
}

// Runs something that asks; what goes wrong is said at the foot of the page.
export async function trying(doing) {
  try {
    return await doing();
  } catch (error) {
    const gone = error instanceof TypeError ? "The viewer does not answer: it has ended." : null;
    say(gone ?? error.message, true);
    return null;
  }
}

export function element(name, text = "", className = "") {
  const node = document.createElement(name);
  node.textContent = text; // text alone: names come from files
  if (className) node.className = className;
  return node;
}

export function option(value, text) {
  const node = element("option", text);
  node.value = value;
  return node;
}
