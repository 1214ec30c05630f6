/** @file Door of serving/capacity: what a machine takes, and what servers of such machines do under some traffic. */
export { type BenchOptions, measureProfile } from "./bench.ts";
export {
  type FleetForecast,
  type FleetQuestion,
  meetsTarget,
  placeTenants,
  planFleet,
  sizeFleet,
} from "./fleet.ts";
export { type MethodProfile, MODEL_EACH, modelEach, type Profile, profileSchema, readProfile } from "./profile.ts";
export { type ServerForecast, type ServerTraffic, simulateServer } from "./simulate.ts";
export { arrivalsOf, type Drawn, RequestDraw, type Traffic, type TrafficInput, trafficSchema } from "./traffic.ts";
