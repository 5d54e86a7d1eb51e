/* An error of the server or of the way to it. */
class Refusal extends Error {
  constructor(message, status, code) {
    super(message);
    Object.assign(this, { status, code });
  }
}
let apiKey = "";

async function call(path, body, signal) {
  const headers = { "content-type": "application/json", ...(apiKey && { authorization: `Bearer ${apiKey}` }) };
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer.", 0);
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  const told = answer?.error;
  throw new Refusal(told?.message ?? `The server answered ${response.status} ${response.statusText}`, response.status, told?.code);
}

/* One event of a stream of server-sent events: its name and its data. */
function event(block) {
  const field = name => block.split("\n").filter(line => line.startsWith(`${name}:`))
    .map(line => line.slice(name.length + 1).trimStart()).join("\n");
  const data = field("data");
  return data && { name: field("event"), data: JSON.parse(data) };
}
/* The events of a POST, which EventSource cannot make. A stream that ends without `done` broke off. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "", ended = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      buffer += value;
      for (let end; (end = buffer.indexOf("\n\n")) >= 0; buffer = buffer.slice(end + 2)) {
        const found = event(buffer.slice(0, end));
        if (!found) continue;
        if (found.name === "error") throw new Refusal(found.data.error.message, 200, found.data.error.code);
        ended ||= found.name === "done";
        yield found;
      }
    }
  } catch (error) {
    if (error instanceof Refusal || error.name === "AbortError") throw error;
    throw new Refusal("The connection broke before the answer was complete.", 0);
  }
  if (!ended) throw new Refusal("The stream ended before the answer was complete.", 0);
}
