/* Markdown as nodes: headings, lists, quotations, code, tables, rules, emphasis and links to http(s). HTML
   stays the text that it is; nothing is loaded. */

const SPAN = /(`{1,8})(.+?)\1(?!`)|\*\*(?=\S)(.*?\S)\*\*(?!\*)|(?<![\w*])\*(?=[^\s*])(.*?[^\s*])\*(?![\w*])|(?<!\w)_(?=\S)(.*?\S)_(?!\w)|~~(?=\S)(.*?\S)~~|\[([^\[\]]+)\]\((https?:\/\/[^\s()]+)\)|(https?:\/\/[^\s<>()\[\]"'`]*[^\s<>()\[\]"'`.,;:!?])|\\([\\`*_~\[\]()#+\-.!>|])/;

function inline(text, depth = 0) {
  const parts = [];
  while (text) {
    const found = depth < 8 && SPAN.exec(text);
    if (!found) { parts.push(text); break; }
    if (found.index) parts.push(text.slice(0, found.index));
    const [whole, , code, strong, star, line, struck, label, target, bare, escaped] = found;
    const wrap = (tag, inner) => node(tag, {}, inline(inner, depth + 1));
    const link = (href, inner) => node("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, inner);
    if (code !== undefined) parts.push(node("code", {}, code.replace(/^ (.*) $/, "$1")));
    else if (strong !== undefined) parts.push(wrap("strong", strong));
    else if ((star ?? line) !== undefined) parts.push(wrap("em", star ?? line));
    else if (struck !== undefined) parts.push(wrap("s", struck));
    else if (label !== undefined) parts.push(link(target, inline(label, depth + 1)));
    else if (bare !== undefined) parts.push(link(bare, [bare]));
    else parts.push(escaped);
    text = text.slice(found.index + whole.length);
  }
  return parts;
}
/* Lines of one paragraph, with the breaks that the model made. */
const flow = lines => lines.flatMap((line, i) => (i ? [node("br"), ...inline(line)] : inline(line)));

const FENCE = /^\s{0,3}(`{3,}|~{3,})[^`]*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const HEADING = /^\s{0,3}(#{1,6})\s+(.*)$/;
const RULE = /^\s{0,3}([-*_])(\s*\1){2,}\s*$/;
const TABLE = /^\|?(\s*:?-+:?\s*\|)+(\s*:?-+:?)?$/;
const cells = line => line.trim().replace(/^\||\|$/g, "").split("|").map(cell => cell.trim());

function blocks(lines, depth = 0) {
  const out = [];
  let paragraph = [];
  const close = () => {
    if (paragraph.length) out.push(node("p", {}, flow(paragraph)));
    paragraph = [];
  };
  const take = (from, holds) => {
    let end = from;
    while (end < lines.length && holds(lines[end])) end++;
    return end;
  };
  for (let i = 0; i < lines.length; ) {
    const line = lines[i], fence = FENCE.exec(line), heading = HEADING.exec(line), item = ITEM.exec(line);
    if (fence) {
      close();
      const end = take(i + 1, other => !(other.trim().startsWith(fence[1]) && /^[`~]+$/.test(other.trim())));
      out.push(node("pre", { tabindex: 0 }, node("code", {}, lines.slice(i + 1, end).join("\n"))));
      i = end + 1;
    } else if (heading) {
      close();
      // Below the headings of the page itself.
      out.push(node("p", { class: "heading", role: "heading", "aria-level": Math.min(heading[1].length + 2, 6) }, inline(heading[2].trim().replace(/\s#+$/, ""))));
      i++;
    } else if (RULE.test(line)) {
      close();
      out.push(node("hr"));
      i++;
    } else if (/^\s{0,3}>/.test(line) && depth < 8) {
      close();
      const end = take(i, other => /^\s{0,3}>/.test(other));
      out.push(node("blockquote", {}, blocks(lines.slice(i, end).map(other => other.replace(/^\s{0,3}> ?/, "")), depth + 1)));
      i = end;
    } else if (item && depth < 8) {
      close();
      const end = list(lines, i, item, depth, out);
      i = end;
    } else if (line.includes("|") && TABLE.test((lines[i + 1] ?? "").trim())) {
      close();
      const end = take(i + 2, other => other.includes("|"));
      const row = (tag, text) => node("tr", {}, cells(text).map(cell => node(tag, {}, inline(cell))));
      const body = lines.slice(i + 2, end).map(other => row("td", other));
      out.push(node("table", {}, node("thead", {}, row("th", line)), node("tbody", {}, body)));
      i = end;
    } else {
      if (line.trim()) paragraph.push(line.trim());
      else close();
      i++;
    }
  }
  close();
  return out;
}
/* The list that begins at line `i`; returns the line behind it. */
function list(lines, i, first, depth, out) {
  const indent = first[1].length, numbered = /\d/.test(first[2]);
  const items = [];
  for (; i < lines.length; i++) {
    const item = ITEM.exec(lines[i]);
    const inner = /^\s*/.exec(lines[i])[0].length > indent;
    if (item && !inner && /\d/.test(item[2]) === numbered && item[1].length >= indent) items.push([item[3]]);
    else if (lines[i].trim() && inner && items.length) items.at(-1).push(lines[i].slice(Math.min(indent + 2, /^\s*/.exec(lines[i])[0].length)));
    else if (!lines[i].trim() && ITEM.exec(lines[i + 1] ?? "")?.[1].length >= indent) items.at(-1).push("");
    else break;
  }
  const start = numbered ? { start: parseInt(first[2], 10) } : {};
  const content = item => {
    const inner = blocks(item, depth + 1);
    return inner[0]?.tagName === "P" && !inner[0].className ? [...inner[0].childNodes, ...inner.slice(1)] : inner;
  };
  out.push(node(numbered ? "ol" : "ul", start, items.map(item => node("li", {}, content(item)))));
  return i;
}
const markdown = text => blocks(text.replace(/\r\n?/g, "\n").split("\n"));
