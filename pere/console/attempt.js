// Try it: push an event, be a device that is sent it and answers, and see what became of it.

import { Pere } from "/pere.js";
import { make, put, some } from "./dom.js";
import { eventCard } from "./event.js";
import { ask, part, token } from "./server.js";

const TAPE = 30; // entries of a device that are kept

const field = (id, words, input) => make("div", {}, make("label", { for: id }, words), Object.assign(input, { id }));
const text = (value = "", attributes = {}) => Object.assign(make("input", { type: "text", autocomplete: "off", spellcheck: "false", ...attributes }), { value });
const choice = (...options) => make("select", {}, options.map(([value, words]) => make("option", { value }, words)));

export function attempt(view) {
	const outcome = eventCard("3. See what became of it");
	outcome.element.hidden = true;
	outcome.element.classList.add("follows");
	view.append(
		make("div", { class: "headline" }, make("h1", { id: "try-title", tabindex: "-1" }, "Try it"), make("p", {}, "Be a device, push it something, and watch the receipt arrive. Open this page in a second tab to be two.")),
		make("div", { class: "twin" }, make("div", { class: "stack" }, device(), push(outcome)), outcome.element));
	return { show: () => {}, leave: () => {} };
}

function push(outcome) {
	const channel = text("orders"), type = text(), to = text(), need = text();
	const data = Object.assign(make("textarea", { rows: 4, spellcheck: "false" }), { value: '{"order": 17, "dish": "pere al vino"}' });
	const receipt = choice(["processed", "when it is processed"], ["delivered", "when it is delivered"], ["none", "none"]);
	const ttl = choice(["86400", "for a day"], ["3600", "for an hour"], ["60", "for a minute"], ["0", "only to who is there"]);
	const told = make("p", { role: "status", class: "hint" });
	const form = make("form", { class: "card stack", "aria-labelledby": "push-title", onsubmit: submit },
		make("h2", { id: "push-title" }, "2. Push an event"),
		make("div", { class: "fields" }, field("push-channel", "Channel", channel), field("push-type", "Type (optional)", type)),
		field("push-data", "What, as JSON or as text", data),
		make("div", { class: "fields" }, field("push-receipt", "Receipt", receipt), field("push-ttl", "Sent", ttl)),
		make("div", { class: "fields" }, field("push-to", "Only to (devices, with commas)", to), field("push-need", "Enough are (a number, 90%)", need)),
		make("div", { class: "row" }, make("button", { type: "submit", class: "main" }, "Push"), told));

	async function submit(event) {
		event.preventDefault();
		const query = new URLSearchParams({ receipt: receipt.value, ttl: ttl.value });
		if (type.value.trim()) query.set("type", type.value.trim());
		if (need.value.trim()) query.set("need", need.value.trim());
		for (const name of to.value.split(",").map((name) => name.trim()).filter(Boolean)) query.append("to", name);
		let kind = "application/json";
		try { JSON.parse(data.value); } catch { kind = "text/plain; charset=utf-8"; }
		try {
			const pushed = await ask("POST", `/push/${part(channel.value.trim())}?${query}`, { body: data.value, headers: { "Content-Type": kind, ...(!token.get() && { Device: "console" }) } });
			told.className = "hint";
			put(told, `Pushed${kind.startsWith("text") ? " as text" : ""} to ${some(pushed.audience, "device")}: ${pushed.id}`);
			outcome.element.hidden = false;
			outcome.follow(pushed.channel, pushed.id);
		} catch (trouble) {
			told.className = "bad-news";
			put(told, trouble.message);
		}
	}
	return form;
}

function device() {
	const name = text(sessionStorage.getItem("pere console device") ?? `console-${Math.random().toString(36).slice(2, 6)}`), channel = text("orders");
	const manner = choice(["processed", "says processed at once"], ["slow", "works for 3 seconds, then says processed"], ["failed", "says failed"], ["ask", "waits for you"]);
	const go = make("button", { type: "submit", class: "main" }, "Be this device"), state = make("p", { role: "status", class: "hint" }, "not connected");
	const tape = make("ul", { class: "tape", "aria-label": "What the device was told", tabindex: "0", hidden: true });
	let pere;

	const note = (...content) => {
		tape.hidden = false;
		tape.prepend(...content);
		while (tape.children.length > TAPE) tape.lastChild.remove();
	};
	const said = (words) => note(make("li", { class: "said" }, words));

	function answer(data, event) {
		const line = make("li", {}, make("div", { class: "row" }, make("strong", {}, event.channel), make("span", { class: "soft small" }, `${event.type} · ${event.id}${event.attempt > 1 ? ` · attempt ${event.attempt}` : ""}`)),
			make("pre", {}, typeof data === "string" ? data : JSON.stringify(data, null, 1)));
		note(line);
		if (manner.value === "failed") throw "the console was told to fail";
		if (manner.value === "slow") return new Promise((done) => setTimeout(() => done("worked for 3 s"), 3000));
		if (manner.value !== "ask") return "seen in the console";
		return new Promise((done, fail) => {
			const row = make("div", { class: "row" });
			const button = (words, look, act) => make("button", { type: "button", class: look, onclick: () => { row.replaceChildren(make("span", { class: "soft small" }, `said ${words}`)); act(); } }, words);
			row.append(button("processed", "main", () => done("by hand")), button("failed", "bad", () => fail("by hand")));
			line.append(row);
		});
	}

	function connect(event) {
		event.preventDefault();
		if (pere) return leave();
		sessionStorage.setItem("pere console device", name.value.trim());
		pere = new Pere("", { channels: channel.value.split(",").map((each) => each.trim()), device: name.value.trim(), ...(token.get() && { token: token.get, credentials: "omit" }) });
		pere.on("*", answer);
		pere.on("pere.open", () => put(state, `listening to ${channel.value} as ${name.value}`));
		pere.on("pere.connecting", () => put(state, "connecting"));
		pere.on("pere.closed", ({ reason, retry }) => { put(state, retry == null ? "not connected" : `lost (${reason}), again in ${retry.toFixed(1)} s`); if (retry == null) leave(); });
		pere.on("pere.error", ({ reason, message }) => said(`${reason}: ${message ?? ""}`));
		pere.on("pere.gap", ({ from, to }) => said(`what came between ${from} and ${to} is lost`));
		pere.on("pere.cancel", ({ id }) => said(`${id} was recalled`));
		for (const each of [name, channel]) each.disabled = true;
		put(go, "Leave");
	}

	function leave() {
		pere?.close();
		pere = undefined;
		for (const each of [name, channel]) each.disabled = false;
		put(go, "Be this device");
		put(state, "not connected");
	}

	return make("section", { class: "card stack", "aria-labelledby": "device-title" },
		make("h2", { id: "device-title" }, "1. Be a device"),
		make("form", { class: "stack", onsubmit: connect },
			make("div", { class: "fields" }, field("device-name", "Name", name), field("device-channel", "Channels, with commas", channel)),
			field("device-manner", "When it is sent something, it", manner),
			make("div", { class: "row" }, go, state)),
		tape);
}
