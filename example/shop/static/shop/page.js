// Sends tasks without leaving the page, and asks for the records as long as somebody looks.
"use strict";

const page = document.body.dataset;
const form = document.getElementById("send");
const notice = document.getElementById("notice");
const live = document.getElementById("live");

// Ids that were sent and have no record yet: they wait in a queue.
const waiting = new Set();
const shownStatus = new Map();
let timer;

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function cell(content, className = "") {
  const made = element("td", "", { class: className });
  made.append(...[content].flat());
  return made;
}

function taskCell(record) {
  const parts = [element("a", record.task, { href: record.url, title: record.id })];
  if (record.retry) parts.push(element("small", ` retry ${record.retry}`));
  if (record.crashes) parts.push(element("small", ` after ${record.crashes === 1 ? "a crash" : `${record.crashes} crashes`}`));
  return cell(parts);
}

function outcomeCell(record) {
  if (!record.progress) return cell(element("span", record.outcome, { title: record.outcome }), "outcome");
  const { done, total, note } = record.progress;
  const text = `${done} of ${total}`;
  return cell([element("progress", text, { max: total, value: done, "aria-label": text }), ` ${text} ${note}`], "outcome");
}

function recordRow(record) {
  const row = document.createElement("tr");
  if (shownStatus.get(record.id) !== record.status) row.className = "changed";
  shownStatus.set(record.id, record.status);
  row.append(
    taskCell(record),
    cell(element("span", record.status, { class: `status ${record.status}` })),
    cell(record.seconds.toFixed(2), "number"),
    outcomeCell(record),
    cell(new Date(record.started).toLocaleTimeString([], { hour12: false })),
  );
  return row;
}

function waitingRow(count) {
  const row = document.createElement("tr");
  row.append(
    cell(element("span", count === 1 ? "1 task" : `${count} tasks`)),
    cell(element("span", "WAITING", { class: "status WAITING" })),
    cell("", "number"),
    cell("on a queue, until a worker receives it", "outcome"),
    cell(""),
  );
  return row;
}

function keptRow(kept) {
  const row = document.createElement("tr");
  const until = kept.until && new Date(kept.until).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
  const text = kept.error || `in the outbox, ${until}`;
  const status = kept.dead ? "FAILED" : "WAITING";
  row.append(
    cell(element("a", kept.task, { href: kept.url, title: kept.id })),
    cell(element("span", kept.dead ? "DEAD" : "WAITING", { class: `status ${status}` })),
    cell("", "number"),
    cell(element("span", text, { title: text }), "outcome"),
    cell(""),
  );
  return row;
}

function measuredRow(measured) {
  const row = document.createElement("tr");
  row.append(
    cell(measured.task),
    cell(measured.outcome),
    cell(String(measured.runs), "number"),
    cell(measured.mean.toFixed(3), "number"),
    cell(measured.slowest.toFixed(3), "number"),
  );
  return row;
}

function show({ outbox, records, measurements }) {
  for (const { id } of [...outbox, ...records]) waiting.delete(id);
  const waitingRows = waiting.size ? [waitingRow(waiting.size)] : [];
  document.getElementById("records").replaceChildren(...waitingRows, ...outbox.map(keptRow), ...records.map(recordRow));
  document.getElementById("measured").replaceChildren(...measurements.map(measuredRow));
  document.getElementById("no-records").hidden = records.length + outbox.length + waiting.size > 0;
  const running = records.filter((record) => record.status === "RUNNING").length;
  live.textContent = running || waiting.size ? `${running} running, ${waiting.size} waiting` : "";
  return running > 0 || waiting.size > 0;
}

async function refresh() {
  clearTimeout(timer);
  let busy = false;
  try {
    const answer = await fetch(page.records, { headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    busy = show(await answer.json());
  } catch (error) {
    live.textContent = `The site does not answer (${error.message}).`;
  }
  if (!document.hidden) timer = setTimeout(refresh, busy ? 400 : 1000);
}

async function send(event) {
  event.preventDefault();
  const data = new FormData(form, event.submitter);
  event.submitter.setAttribute("aria-busy", "true");
  notice.textContent = "Sending…"; // in eager mode for as long as the tasks run
  try {
    const answer = await fetch(page.trigger, { method: "POST", body: data, headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error(`the site answered with status ${answer.status}`);
    const { order, sent } = await answer.json();
    for (const id of sent) waiting.add(id);
    notice.textContent = order
      ? `Order ${order} is placed; ${sent.length} ${sent.length === 1 ? "task" : "tasks"} sent.`
      : "The order was rolled back: nothing was sent.";
  } catch (error) {
    notice.textContent = `Nothing was sent: ${error.message}.`;
  } finally {
    event.submitter.removeAttribute("aria-busy");
  }
  refresh();
}

for (const id of JSON.parse(document.getElementById("sent")?.textContent ?? "[]")) waiting.add(id);
// A reload of /trigger/?… would send it again.
history.replaceState(null, "", page.index);
form.addEventListener("submit", send);
document.addEventListener("visibilitychange", refresh);
refresh();
