/** @file The frame: who is signed in, where one can go, and the page that is asked for. */
import { Component, lazy, type ReactNode, Suspense } from "react";
import { Link, Redirect, Route, Switch, useLocation } from "wouter";
import type { StudioSession } from "../../src/serving/studio/types.ts";
import { SessionProvider, useSessionQuery, useSignOut } from "./api/session.tsx";
import logo from "./milora.svg";
import { SignIn } from "./sign-in.tsx";
import { ThemeChoice } from "./theme.tsx";
import { Button, Empty, ErrorNote, Loaded, Loading, Page } from "./ui/index.ts";

const Runs = lazy(() => import("./pages/runs/index.tsx"));
const Routing = lazy(() => import("./pages/routing/index.tsx"));
const Playground = lazy(() => import("./pages/playground/index.tsx"));
const Operations = lazy(() => import("./pages/operations/index.tsx"));

export function App() {
  const session = useSessionQuery();
  return (
    <Loaded query={session} what="Starting">
      {(known) => (known.signedIn ? <Frame session={known} /> : <SignIn />)}
    </Loaded>
  );
}

/** Pages that this reader has, the first one first. */
function placesOf({ server, runs, sweeps, role }: StudioSession): readonly (readonly [path: string, text: string])[] {
  return [
    ...(server
      ? ([
          ["/playground", "Playground"],
          ["/routing", "Routing"],
        ] as const)
      : []),
    ...((runs || sweeps) && role === "admin" ? ([["/runs", "Runs"]] as const) : []),
    ...(server ? ([["/operations", role === "admin" ? "Operations" : "Adapters"]] as const) : []),
  ];
}

/** Places whose tabs keep what was done in them while another one is looked at. */
const STEADY = ["/routing"];

function Frame({ session }: { session: StudioSession }) {
  const places = placesOf(session);
  const [location] = useLocation();
  const has = (path: string) => places.some(([place]) => place === path);
  return (
    <SessionProvider session={session}>
      <a className="skip" href="#content">
        Skip to the page
      </a>
      <header className="top">
        <Link href="/" className="brand">
          <img src={logo} alt="" width="24" height="24" />
          milora studio
        </Link>
        <nav aria-label="Pages">
          {places.map(([path, text]) => (
            <Link key={path} href={path} aria-current={location.startsWith(path) ? "page" : undefined}>
              {text}
            </Link>
          ))}
        </nav>
        <ThemeChoice />
        <Who session={session} />
      </header>
      <main id="content" tabIndex={-1}>
        <Caught key={STEADY.find((place) => location.startsWith(place)) ?? location}>
          <Suspense fallback={<Loading />}>
            <Switch>
              <Route path="/">{places[0] ? <Redirect to={places[0][0]} replace /> : <Nothing />}</Route>
              {has("/playground") && <Route path="/playground" component={Playground} />}
              {has("/routing") && <Route path="/routing/*?" component={Routing} />}
              {has("/runs") && <Route path="/runs/*?" component={Runs} />}
              {has("/operations") && <Route path="/operations/*?" component={Operations} />}
              <Route>
                <Page title="There is no such page">
                  <Empty title="Nothing here">
                    <Link href="/">Go to the first page</Link>
                  </Empty>
                </Page>
              </Route>
            </Switch>
          </Suspense>
        </Caught>
      </main>
    </SessionProvider>
  );
}

function Nothing() {
  return (
    <Page title="milora studio">
      <Empty title="There is nothing to show yet" />
    </Page>
  );
}

function Who({ session: { byKey, tenant, role } }: { session: StudioSession }) {
  const signOut = useSignOut();
  if (!byKey) return null;
  return (
    <div className="row">
      <span className="muted">{role === "admin" ? "administrator" : tenant}</span>
      <Button small disabled={signOut.isPending} onClick={() => signOut.mutate()}>
        Sign out
      </Button>
    </div>
  );
}

/** A page that breaks leaves the frame standing. */
class Caught extends Component<{ children: ReactNode }, { error: unknown }> {
  override state: { error: unknown } = { error: undefined };

  static getDerivedStateFromError(error: unknown): { error: unknown } {
    return { error };
  }

  override render(): ReactNode {
    const { error } = this.state;
    return error === undefined ? (
      this.props.children
    ) : (
      <ErrorNote error={error} retry={() => this.setState({ error: undefined })} />
    );
  }
}
