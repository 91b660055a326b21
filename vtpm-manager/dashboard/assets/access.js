// The token. It is kept for this tab and this origin, port included, and is shown to the server in a
// header: never in a URL, and never in a cookie, which would go to every port of this name.

import { byId, say } from "./dom.js";

const KEY = "token";

export const token = () => sessionStorage.getItem(KEY);

/** How a request shows the token. */
export const headers = () => ({ authorization: `Bearer ${token() ?? ""}` });

/** Asks for the token, with why it is asked for again; calls back once there is one. */
export function ask(why, entered) {
  sessionStorage.removeItem(KEY);
  const form = byId("login").querySelector("form");
  say(byId("token-error"), why);
  byId("page").hidden = true;
  byId("login").hidden = false;
  byId("token").value = "";
  byId("token").focus();
  form.onsubmit = (event) => {
    event.preventDefault();
    const text = byId("token").value.trim();
    // What no header can hold is no token.
    if (!/^[\x21-\x7e]+$/.test(text)) {
      say(byId("token-error"), "This is no token.");
      return;
    }
    sessionStorage.setItem(KEY, text);
    byId("token").value = "";
    entered();
  };
}
